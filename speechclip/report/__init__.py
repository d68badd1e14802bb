"""What a scored run leaves for people to read: the tables of RESULTS.md and figures."""
