"""One module a corpus: from the layout it is published in to data directories."""
