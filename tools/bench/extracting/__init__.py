"""Adapters from two checkpoints: ours and mergekit's on the same input."""
