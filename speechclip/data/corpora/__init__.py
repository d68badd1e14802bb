"""Corpora: one module per corpus, and the parts that they share."""
