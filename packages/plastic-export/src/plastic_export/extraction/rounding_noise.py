"""What the rounding of a stored weight adds to a difference: the components that say nothing."""

from __future__ import annotations

import math

import numpy as np
from plastic_core.linalg import Float32, Float64, blocks

_MANTISSA = {"BF16": 7, "F16": 10, "F32": 23}
_EPS = float(np.finfo(np.float32).eps)


def noise_edge(weight: Float32, dtype: str, norm: float) -> float:
    r"""Return a bound on the singular values that rounding alone gives a difference.

    A weight :math:`w` that was rounded to its storage type is off by up to half the spacing
    :math:`u` of that type at :math:`w`, which has the variance :math:`u^2 / 12`. Independent
    errors with the variances :math:`v_{ij}` have a spectral norm of about

    .. math::

        \max_i \Bigl(\sum_j v_{ij}\Bigr)^{1/2} + \max_j \Bigl(\sum_i v_{ij}\Bigr)^{1/2},

    beside a term of the order of :math:`\max_{ij} v_{ij}^{1/2} (\log (m + n))^{1/2}`.

    Args:
        weight: The weight as it was stored, shape ``(m, n)``.
        dtype: Its storage type; one that is no float is taken for float32.
        norm: Frobenius norm of the difference, which is computed in float32.

    Examples:
        >>> ones = np.ones((400, 100), np.float32)
        >>> round(noise_edge(ones, "BF16", 0.0) / noise_edge(ones, "F32", 0.0)) == 2**16
        True

    References:
        Bandeira and van Handel, *Sharp nonasymptotic bounds on the norm of random matrices with
        independent entries*, Annals of Probability 44(4), 2016,
        https://arxiv.org/abs/1408.6185, theorem 1.1.
    """
    m, n = weight.shape
    by_row, by_column, most = np.zeros(m), np.zeros(n), 0.0
    for rows in blocks(m, n):
        variances = _variances(weight[rows], dtype)
        by_row[rows] = variances.sum(axis=1)
        by_column += variances.sum(axis=0)
        most = max(most, float(variances.max(initial=0.0)))
    spread = math.sqrt(by_row.max(initial=0.0)) + math.sqrt(by_column.max(initial=0.0))
    return spread + 2 * math.sqrt(most * math.log(m + n)) + 2 * _EPS * norm


def _variances(weight: Float32, dtype: str) -> Float64:
    """Return ``u^2 / 12`` for every entry; the spacing of 0 is that of the least exponent."""
    exponents = np.frexp(weight)[1].astype(np.float64) - 1 - _MANTISSA.get(dtype, 23)
    exponents[weight == 0] = -126
    variances: Float64 = np.exp2(2 * exponents) / 12
    return variances
