"""Backbones and corrections in few bits, rounded so that the predicted loss rises least.

Stands on ``linalg``, ``factors`` and ``loss``.
"""

from plastic_core.rounding.correction import UNPACKED

__all__ = ["UNPACKED"]
