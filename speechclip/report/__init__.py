"""Tables, figures and pages of scored runs."""
