"""How far a checkpoint is from its reference on a text, with intervals.

Stands on ``model`` and below.
"""
