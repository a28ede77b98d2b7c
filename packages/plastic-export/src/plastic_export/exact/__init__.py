"""The data beside an output that gives back every bit of its source.

Stands on ``format`` and below.
"""
