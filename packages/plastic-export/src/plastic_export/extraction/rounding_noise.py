"""What the rounding of a stored weight adds to a difference: the components that say nothing."""

from __future__ import annotations

import math

import numpy as np
from plastic_core.linalg import Float32

_SPACING = {"BF16": 2.0**-7, "F16": 2.0**-10}
_EPS = float(np.finfo(np.float32).eps)


def noise_edge(weight: Float32, dtype: str, norm: float) -> float:
    r"""Return a bound on the singular values that rounding alone gives a difference.

    A weight :math:`w` that was rounded to its storage type is off by up to half the spacing of
    that type at :math:`w`, which is at most :math:`\epsilon |w|`: a variance of at most
    :math:`v = \epsilon^2 w^2 / 12`. Independent errors of these variances have a spectral norm of
    about

    .. math::

        \max_i \Bigl(\sum_j v_{ij}\Bigr)^{1/2} + \max_j \Bigl(\sum_i v_{ij}\Bigr)^{1/2},

    beside a term of the order of :math:`\max_{ij} (v_{ij} \log (m + n))^{1/2}`.

    Args:
        weight: The weight as it was stored, shape ``(m, n)``.
        dtype: Its storage type; one that is no float is taken for float32.
        norm: Frobenius norm of the difference, which is computed in float32.

    References:
        Bandeira and van Handel, *Sharp nonasymptotic bounds on the norm of random matrices with
        independent entries*, Annals of Probability 44(4), 2016,
        https://arxiv.org/abs/1408.6185, theorem 1.1.
    """
    squares = (np.einsum(f"ij,ij->{side}", weight, weight).max(initial=0.0) for side in "ij")
    largest = max(weight.max(initial=0.0), -weight.min(initial=0.0))
    scale = sum(map(math.sqrt, squares)) + 2 * largest * math.sqrt(math.log(sum(weight.shape)))
    return _SPACING.get(dtype, _EPS) * float(scale) / math.sqrt(12) + 2 * _EPS * norm
