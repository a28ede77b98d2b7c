"""The best approximation of a given rank or a given error, and what it costs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Literal, cast, get_args

import mlx.core as mx
import numpy as np

from plastic_core.factors.balancing import balance
from plastic_core.factors.certificate import operator_spectral_norm, ratio, spectral_bound
from plastic_core.factors.factors import Certificate, Factors
from plastic_core.factors.operators import LowRank, Operand, Operator, Residual, as_operator
from plastic_core.factors.randomized import (
    LEAST_TRUSTED_ERROR,
    Triplets,
    leading_triplets,
    triplets_within,
)
from plastic_core.factors.work import exact_work, randomized_work
from plastic_core.linalg import Matrix, as_matrix, as_vector, thin_svd

Method = Literal["auto", "exact", "randomized"]

LEAST_TOLERANCE = 1e-5
"""What may be asked for: float32 factors err by up to a tenth of it."""
LARGEST_NORM = float(np.finfo(np.float32).max)
"""Beyond it singular values overflow float32."""
SEPARATED = 0.5
"""Of the first singular value: where the rest lies below, the first has converged."""


def factorized_lowrank(
    A: Operand,
    rank: int | None = None,
    *,
    tolerance: float | None = None,
    method: Method = "auto",
    dtype: mx.Dtype = mx.float32,
    key: int | mx.array = 0,
) -> Factors:
    r"""Return the best approximation of ``A`` of a rank, or of the least rank for an error.

    Of all matrices of rank at most :math:`r`, the truncated singular value decomposition is closest
    to :math:`A` in the spectral and in the Frobenius norm, and what it discards is known exactly:

    .. math::

        \|A - A_r\|_2 = \sigma_{r+1}, \qquad \|A - A_r\|_F^2 = \sum_{i > r} \sigma_i^2.

    Args:
        A: Matrix of shape ``(m, n)``, NumPy or MLX, any floating dtype, or what `difference`
            takes and returns. It is not modified.
        rank: Number of singular values to keep, from 1 to ``min(m, n)``; with ``tolerance`` the
            most that may be kept.
        tolerance: Relative Frobenius error, in [1e-5, 1): keep as few as it allows. At least one
            of ``rank`` and ``tolerance`` must be given.
        method: ``"exact"``, a thin singular value decomposition; ``"randomized"``, block Lanczos
            bidiagonalisation from a random start; ``"auto"``, whichever is predicted to cost less.
        dtype: Floating dtype of the factors.
        key: Seed or key of all that is random. The same key gives the same factors on one device.

    Returns:
        Factors of shapes ``(m, r)``, ``(r,)`` and ``(r, n)`` with their ``certificate`` (errors
        after the cast to ``dtype``: see `certify`) and ``method``. ``S`` is non-negative and
        non-increasing; the columns of ``U`` and the rows of ``Vh`` are orthonormal to the precision
        of ``dtype``. Randomised factors miss the least possible Frobenius error of their rank by
        less than one percent on every spectrum measured. With a ``tolerance`` that ``rank`` allows,
        ``certificate.relative_error`` is at most the tolerance, and the rank is within 5 percent of
        the least; 0 for a zero matrix.

    Raises:
        TypeError: If ``A`` does not hold floating-point numbers.
        ValueError: If ``A`` is empty, not finite or beyond float32, an argument is out of range, or
            the rounding to ``dtype`` alone exceeds ``tolerance``.

    Note:
        Randomised: O(m n r) operations in products on MLX's default device (`linalg.place`), and
        memory for about ``2 (m + n) r`` float32 entries. Exact: O(m n min(m, n)) on the CPU.

    Examples:
        >>> U, S, Vh = factorized_lowrank(np.diag([3.0, 2.0, 1.0]), rank=2)
        >>> np.asarray(S).round(3).tolist()
        [3.0, 2.0]

    References:
        Eckart and Young, *The approximation of one matrix by another of lower rank*,
        Psychometrika 1(3), 1936, https://doi.org/10.1007/BF02288367. For the randomised method
        see `Bidiagonalisation`.
    """
    matrix = as_operator(A)
    rank = _checked_rank(matrix, rank)
    _check(rank, tolerance, method, dtype)
    norm, aim = _checked_norm(matrix), tolerance
    while True:
        triplets, method = _triplets(matrix, norm, rank, aim, method, key)
        stored = partial(certified, matrix, norm, dtype=dtype, key=key, method=method)
        if tolerance is None:
            return stored(triplets)
        factors, left = _fewest(stored, triplets, tolerance, norm)
        capped = rank is not None and triplets.error > tolerance * norm
        if capped or cast(Certificate, factors.certificate).relative_error <= tolerance:
            return factors
        if rank is not None or left < tolerance / 10:
            raise ValueError(
                f"`tolerance` {tolerance:g} cannot be met by factors in {dtype}, whose rounding "
                "alone costs as much. Choose a wider dtype or a larger tolerance."
            )
        aim = 0.99 * left


def _fewest(
    stored: Callable[[Triplets], Factors], triplets: Triplets, tolerance: float, norm: float
) -> tuple[Factors, float]:
    """Return the fewest triplets that keep the tolerance once they are stored, or all of them.

    And the relative error that is left to the triplets by what storing them costs.
    """
    squares, target = triplets.errors() ** 2, (tolerance * norm) ** 2
    count, left = 0, target
    while True:
        enough = squares <= left
        count = max(count, int(np.argmax(enough)) if enough[-1] else len(triplets.S))
        factors = stored(triplets.leading(count))
        square = (cast(Certificate, factors.certificate).relative_error * norm) ** 2
        left = max(0.0, target - (square - squares[count]))
        if square <= target or count == len(triplets.S):
            return factors, math.sqrt(left) / (norm or 1.0)
        count += 1


def svd_lowrank(A: Matrix, rank: int) -> mx.array:
    """Return the best rank-``rank`` approximation of ``A`` as a dense matrix.

    Args:
        A: Matrix of shape ``(m, n)``, NumPy or MLX, any floating dtype.
        rank: Number of singular values to keep, from 1 to ``min(m, n)``.

    Returns:
        Matrix of shape ``(m, n)`` in the dtype of ``A``; NumPy's float64 becomes float32.

    Raises:
        TypeError: If ``A`` does not hold floating-point numbers.
        ValueError: If ``A`` is not a finite matrix, ``rank`` is out of range, or the approximation
            overflows the dtype of ``A``.

    Examples:
        >>> abs(np.asarray(svd_lowrank(np.diag([3.0, 2.0]), 1))).round(3).tolist()
        [[3.0, 0.0], [0.0, 0.0]]
    """
    matrix = as_operator(A)
    count = _checked_rank(matrix, rank)
    triplets, _ = _triplets(matrix, _checked_norm(matrix), count, None, "auto", 0)
    U, S, Vh, dtype = *triplets[:3], _mlx_dtype(A)
    dense = mx.array((U * S) @ Vh).astype(dtype, stream=mx.cpu)
    if not bool(mx.isfinite(dense, stream=mx.cpu).all(stream=mx.cpu).item()):
        raise ValueError(
            f"The rank-{rank} approximation overflows {dtype}. Cast `A` to float32 first."
        )
    return dense


def _mlx_dtype(A: Matrix) -> mx.Dtype:
    if isinstance(A, mx.array):
        return A.dtype
    return mx.float16 if A.dtype == np.float16 else mx.float32


def _checked_rank(A: Operator, rank: int | None) -> int | None:
    if min(A.shape) == 0:
        raise ValueError(f"`A` has no entries: shape {A.shape}. Leave it out.")
    if rank is None:
        return None
    rank, limit = as_rank(rank), A.max_rank
    if not min(1, limit) <= rank <= limit:
        what = "min(m, n)" if limit == min(A.shape) else "the rank of the factors"
        raise ValueError(
            f"`rank` must be between 1 and {what} = {limit} for a matrix of shape {A.shape}, "
            f"got {rank}."
        )
    return rank


def as_rank(rank: int) -> int:
    """Return ``rank`` as a Python integer; raise ``TypeError`` if it is not one."""
    try:
        return operator.index(rank)
    except TypeError as error:
        raise TypeError(f"`rank` must be an integer, got {rank!r}.") from error


def _check(rank: int | None, tolerance: float | None, method: Method, dtype: mx.Dtype) -> None:
    if rank is None and tolerance is None:
        raise ValueError("Give a `rank`, a `tolerance`, or both.")
    if tolerance is not None and not LEAST_TOLERANCE <= tolerance < 1:
        raise ValueError(
            f"`tolerance` must be at least {LEAST_TOLERANCE:g}, the least that float32 factors can "
            f"keep, and below 1, got {tolerance}."
        )
    if method not in get_args(Method):
        raise ValueError(f"`method` must be one of {get_args(Method)}, got {method!r}.")
    if not mx.issubdtype(dtype, mx.floating):
        raise TypeError(f"`dtype` must be floating, got {dtype}.")


def _checked_norm(A: Operator) -> float:
    norm = A.norm()
    if norm > LARGEST_NORM:
        raise ValueError(
            f"The norm of `A`, {norm:.3g}, overflows float32. Scale the matrix down first."
        )
    return norm


def _triplets(
    A: Operator,
    norm: float,
    rank: int | None,
    tolerance: float | None,
    method: Method,
    key: int | mx.array,
) -> tuple[Triplets, Method]:
    """Return more than enough triplets for ``tolerance``, and the method that gave them."""
    budget = exact_work(A.shape) if method == "auto" else math.inf
    factored = method == "auto" and isinstance(A, LowRank)
    if factored or method == "exact" or budget <= randomized_work(A.shape, rank or 1):
        return _exact(A, rank), "exact"
    if rank is not None:
        leading = leading_triplets(A, norm, rank, key)
        vague = tolerance is not None and leading.error < LEAST_TRUSTED_ERROR * norm
        return (leading.measured(A) if vague else leading), "randomized"
    assert tolerance is not None
    found = triplets_within(A, norm, tolerance, budget, key)
    return (_exact(A, None), "exact") if found is None else (found, "randomized")


def _exact(A: Operator, rank: int | None) -> Triplets:
    if isinstance(A, LowRank):
        U, S, Vh = balance(A.U, np.ones(A.rank, np.float32), A.Vh)
    else:
        U, S, Vh = thin_svd(A.rows(slice(None)))
    rank = len(S) if rank is None else rank
    return Triplets(U, S, Vh, 0.0).leading(rank)


def certified(
    A: Operator,
    norm: float,
    triplets: Triplets,
    *,
    dtype: mx.Dtype,
    key: int | mx.array,
    method: Method,
) -> Factors:
    """Return the triplets cast to ``dtype``, with the errors of the cast numbers."""
    U, S, Vh = (mx.array(a).astype(dtype, stream=mx.cpu) for a in triplets[:3])
    if not bool(mx.isfinite(S, stream=mx.cpu).all(stream=mx.cpu).item()):
        raise ValueError(f"A singular value overflows {dtype}. Choose a wider `dtype`.")
    E = Residual(A, U, as_vector(S)[:, None] * as_matrix(Vh))
    error, bound = triplets.error, triplets.bound
    if (
        dtype != mx.float32
        or method == "exact"
        or error < max(LEAST_TRUSTED_ERROR * norm, 1e3 * A.roundoff())
    ):
        error, bound = E.norm(), None
    if bound is None:
        bound = spectral_bound(E, error, key)
    largest = float(triplets.S.max(initial=0.0))
    if method != "exact" and bound > SEPARATED * largest:
        largest = max(largest, operator_spectral_norm(A, norm, key))
    certificate = Certificate(ratio(error, norm), ratio(bound, largest))
    return Factors.certified(U, S, Vh, certificate, method)
