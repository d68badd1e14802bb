"""Checkpoints as their authors published them."""
