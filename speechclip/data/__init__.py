"""Data directories, audio, images and the feature store."""
