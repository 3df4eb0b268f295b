"""Checkpoints on disk: parts, sets and restoring."""
