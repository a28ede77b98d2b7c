"""A compressed folder turned to another size: from what is stored in it, and nothing else.

Stands on ``compression`` and below.
"""
