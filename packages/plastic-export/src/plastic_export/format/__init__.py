"""What is written for a matrix, one file per format.

Stands on ``plan`` and below.
"""
