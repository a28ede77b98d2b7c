"""Low-rank factors of a matrix: made, certified, updated, quantized.

Stands on ``linalg``. The rooms ``loss``, ``rounding`` and ``layer`` build on it.
"""

from plastic_core.factors.balancing import (
    Arrays,
    as_arrays,
    balance,
    factor_norm,
    product_spectrum,
    right_map,
)
from plastic_core.factors.directions import descent_directions
from plastic_core.factors.quantize import BITS, GROUP_SIZES, best_group

__all__ = [
    "BITS",
    "GROUP_SIZES",
    "Arrays",
    "as_arrays",
    "balance",
    "best_group",
    "descent_directions",
    "factor_norm",
    "product_spectrum",
    "right_map",
]
