"""Metrics: arrays in, dictionaries out. Nothing here reads a file, holds a model or prints."""
