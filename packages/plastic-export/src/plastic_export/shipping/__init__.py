"""Checkpoints, outputs and runs in the form that another program loads: one target each."""
