"""Low-rank factors of a matrix: made, certified, updated, quantized.

Stands on ``linalg``. The rooms ``loss``, ``rounding`` and ``layer`` build on it.
"""

from plastic_core.factors.balancing import Arrays, as_arrays, balance, factor_norm, right_map
from plastic_core.factors.directions import orthonormal_beyond
from plastic_core.factors.operators import LowRank, as_operator
from plastic_core.factors.quantize import BITS, best_group
from plastic_core.factors.randomized import leading_triplets

__all__ = [
    "BITS",
    "Arrays",
    "LowRank",
    "as_arrays",
    "as_operator",
    "balance",
    "best_group",
    "factor_norm",
    "leading_triplets",
    "orthonormal_beyond",
    "right_map",
]
