"""The training loop, its saved state, and its logs."""
