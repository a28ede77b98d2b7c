"""Factors that grow and add up without starting again."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from plastic_core.factors.balancing import as_arrays
from plastic_core.factors.factors import Factors
from plastic_core.factors.lowrank import as_rank, certified, factorized_lowrank
from plastic_core.factors.operators import LowRank, Operand, Operator, Residual, as_operator
from plastic_core.factors.randomized import Triplets, leading_triplets
from plastic_core.linalg import Float32, qr, thin_svd


def grow_factors(A: Operand, factors: Factors, rank: int, *, key: int | mx.array = 0) -> Factors:
    r"""Return factors of ``A`` with more components than the ones at hand.

    Only the missing directions are searched, in what the present ones leave of ``A``. Both together
    span Q, and the result is the best that Q holds: with the thin singular value decomposition
    :math:`Q^T A = P S V_h` it is :math:`(Q P) S V_h`.

    Args:
        A: Matrix of shape ``(m, n)``, or what `difference` takes and returns.
        factors: Factors of ``A`` with ``r`` components, as `factorized_lowrank` returns them.
        rank: Number of components wanted, above ``r``, at most ``min(m, n)``.
        key: Seed or key of all that is random.

    Returns:
        Float32 factors with ``rank`` components and their certificate. Where the present components
        are leading singular triplets, the error is that of `factorized_lowrank` at that rank.

    Raises:
        ValueError: If ``rank`` is out of range, the factors do not fit ``A``, or an entry is not
            finite.

    Note:
        The products of a factorisation of rank ``rank - r``, and one of O(m n rank).

    Examples:
        >>> A = np.diag(np.float32([4, 3, 2, 1]))
        >>> np.asarray(grow_factors(A, factorized_lowrank(A, 2), 3).S).round(3).tolist()
        [4.0, 3.0, 2.0]
    """
    matrix, (U, S, Vh) = as_operator(A), as_arrays(factors)
    if factors.shape != matrix.shape:
        raise ValueError(f"`factors` of shape {factors.shape} do not fit `A` of {matrix.shape}.")
    rank = as_rank(rank)
    if not factors.rank < rank <= min(matrix.shape):
        raise ValueError(
            f"`rank` must be above the present {factors.rank} and at most min(m, n) = "
            f"{min(matrix.shape)}, got {rank}."
        )
    norm, left = matrix.norm(), Residual(matrix, U, S[:, None] * Vh)
    found = leading_triplets(left, left.norm(), rank - factors.rank, key)
    triplets = _within(matrix, norm, np.concatenate([U, found.U], axis=1))
    return certified(matrix, norm, triplets, dtype=mx.float32, key=key, method="randomized")


def _within(A: Operator, norm: float, basis: Float32) -> Triplets:
    """Return the singular triplets of ``Q Q^T A`` for Q that spans ``basis``."""
    Q, _ = qr(basis)
    V, S, Ph = thin_svd(A.transposed_times(Q))
    missed = norm**2 - float(np.sum(S.astype(np.float64) ** 2))
    return Triplets(Q @ Ph.T, S, V.T, math.sqrt(max(0.0, missed)))


def add_factors(
    a: Factors, b: Factors, *, rank: int | None = None, tolerance: float | None = None
) -> Factors:
    """Return ``a + b`` as factors, truncated to a rank or to an error.

    QR of the factors side by side and a small singular value decomposition: the sum is never
    formed.

    Args:
        a: Factors of shapes ``(m, r)``, ``(r,)``, ``(r, n)``; any columns, any dtype.
        b: Factors of the same ``m`` and ``n``.
        rank: See `factorized_lowrank`; by default nothing is dropped.
        tolerance: See `factorized_lowrank`.

    Returns:
        Float32 factors with orthonormal sides and their certificate relative to the sum.

    Raises:
        ValueError: If the shapes differ, an entry is not finite, or ``rank`` or ``tolerance`` is
            out of range.

    Note:
        O((m + n + r) r^2) operations for r components in all.

    Examples:
        >>> a = factorized_lowrank(np.diag(np.float32([4, 0, 0])), 1)
        >>> b = factorized_lowrank(np.diag(np.float32([0, 3, 0])), 1)
        >>> np.asarray(add_factors(a, b).S).round(3).tolist()
        [4.0, 3.0]
    """
    if a.shape != b.shape:
        raise ValueError(f"`a` and `b` must have one shape, got {a.shape} and {b.shape}.")
    left, right = as_operator(a), as_operator(b)
    assert isinstance(left, LowRank)
    assert isinstance(right, LowRank)
    total = left.plus(right)
    if rank is None and tolerance is None:
        rank = total.max_rank
    return factorized_lowrank(total, rank, tolerance=tolerance)
