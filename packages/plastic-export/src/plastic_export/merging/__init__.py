"""Outputs and adapters as the dense models that they stand for, one tensor at a time."""
