"""The weights of a source as mlx-lm's loaded model holds them, traced back to the files.

Stands on ``checkpoint``, ``folder`` and ``model``.
"""

from plastic_export.source.graph import Origin, origins
from plastic_export.source.layers import Layer
from plastic_export.source.source import Source
from plastic_export.source.trace import write_holes

__all__ = ["Layer", "Origin", "Source", "origins", "write_holes"]
