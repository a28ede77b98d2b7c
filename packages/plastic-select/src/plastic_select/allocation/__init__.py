"""One budget over many matrices: options, their hulls, the relaxation, the exact end.

Stands on ``linalg`` alone.
"""
