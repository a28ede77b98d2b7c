"""The original distilled into what a compressed folder stores in floating point.

Stands on ``compression`` and below.
"""
