"""Scores. Metrics take arrays and return dictionaries; ``score_files`` reads and writes the files in ``scores/``."""
