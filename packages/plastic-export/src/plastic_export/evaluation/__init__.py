"""The distance of a checkpoint from its reference on a text, with intervals.

Stands on ``model`` and below.
"""
