"""Backbones and corrections in few bits, rounded so that the predicted loss rises least.

Stands on ``linalg``, ``factors`` and ``loss``.
"""

from plastic_core.rounding.compiling import CompilingWarning
from plastic_core.rounding.correction import UNPACKED
from plastic_core.rounding.expected import expected_costs, expected_error
from plastic_core.rounding.levels import nearest_errors

__all__ = ["UNPACKED", "CompilingWarning", "expected_costs", "expected_error", "nearest_errors"]
