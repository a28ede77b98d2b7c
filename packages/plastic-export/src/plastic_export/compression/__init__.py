"""A checkpoint made smaller, given back, described: plans made and carried out.

Stands on ``format``, ``exact`` and below.
"""

from plastic_export.compression.planning import plannable

__all__ = ["plannable"]
