"""Readers of checkpoints, one module per container."""
