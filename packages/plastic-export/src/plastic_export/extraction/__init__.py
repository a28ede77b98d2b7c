"""An adapter from two checkpoints: what one has learnt beyond the other, at a rank per layer.

Stands on ``source``, ``adapters``, ``calibration``, ``evaluation`` and ``reshaping``.
"""

from plastic_export.extraction.pair import Pair

__all__ = ["Pair"]
