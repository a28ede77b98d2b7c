"""The scores of checkpoints in tasks, by lm-evaluation-harness, which is an extra.

Stands on ``evaluation`` and below.
"""
