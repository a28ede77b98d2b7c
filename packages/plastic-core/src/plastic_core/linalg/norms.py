"""Norms without a factorisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_core.linalg.arrays import Float64, Matrix, as_matrix, generator
from plastic_core.linalg.lapack import eigvalsh
from plastic_core.linalg.products import multiply

CACHED_ENTRIES = 2**16
"""Entries of a float64 block that stays in the second-level cache."""
FEW_COLUMNS = 64
"""For so many every step is taken: they cost nothing."""
FAILURE_PROBABILITY = 1e-3
"""That a norm is further off than its tolerance."""


def frobenius_norm(A: Matrix) -> float:
    """Square root of the sum of squares, in float64: no float32 matrix over- or underflows it.

    Examples:
        >>> frobenius_norm(np.float32([[2.0**100, 0.0]])) == 2.0**100
        True
    """
    return math.sqrt(squared_norm(as_matrix(A)))


def squared_norm(A: NDArray[Any]) -> float:
    """Sum of squares in float64, one cache-sized block at a time; not finite if an entry is not.

    Examples:
        >>> squared_norm(np.array([[3.0, 4.0]]))
        25.0
    """
    total, step = 0.0, max(1, CACHED_ENTRIES // max(1, A.shape[1]))
    for start in range(0, len(A), step):
        block = A[start : start + step].astype(np.float64)
        total += float(np.vdot(block, block))
    return total


def spectral_norm(A: Matrix, *, tolerance: float = 1e-2, key: int | mx.array = 0) -> float:
    """Return the largest singular value of ``A``, without a factorisation.

    Args:
        A: Matrix of shape ``(m, n)``.
        tolerance: See `operator_norm`.
        key: Seed or key of the random starting vector.

    Returns:
        A lower bound of the norm, 0.0 for a zero or empty matrix.

    Examples:
        >>> round(spectral_norm(np.diag([1.0, -3.0])), 6)
        3.0
    """
    A = as_matrix(A)

    def energy(x: Float64) -> Float64:
        return multiply(A.T, multiply(A, x))

    return operator_norm(energy, A.shape[1], tolerance=tolerance, key=key)


def operator_norm(
    energy: Callable[[Float64], Float64],
    size: int,
    *,
    tolerance: float = 1e-2,
    key: int | mx.array = 0,
) -> float:
    """Return the largest singular value of an operator D known through ``x -> D.T @ (D @ x)``.

    Lanczos iteration with full re-orthogonalisation (Golub and Van Loan, *Matrix Computations*,
    4th ed., section 10.1), started at random. A small residual only tells that some eigenvalue is
    near. But the k-th Lanczos vector has the component ``p_k(t) c`` along an eigenvector of
    eigenvalue t, where ``p_k`` is the k-th Lanczos polynomial and c the component of the start; so
    ``sum_k p_k(t)^2 <= 1 / c^2``, and a random start makes a tiny c improbable. The iteration ends
    once no eigenvalue beyond the tolerance satisfies that.

    Args:
        energy: The product ``D.T @ (D @ x)`` for float64 vectors ``x`` of shape ``(size,)``.
        size: Number of columns of D.
        tolerance: Largest relative error of the result, in (0, 1).
        key: Seed or key of the random starting vector.

    Returns:
        A lower bound of the norm, within ``tolerance`` of it with probability 0.999 over the
        starting vector, whatever the spectrum; exact but for rounding for at most 64 columns.

    Note:
        At most ``size`` steps, and at the default tolerance at most 44 for ``size`` = 10,000: the
        sum grows at least as fast as for Chebyshev polynomials.

    References:
        Van Dorsselaer, Hochstenbach and van der Vorst, *Computing probabilistic bounds for extreme
        eigenvalues of symmetric matrices with the Lanczos method*, SIAM J. Matrix Anal. Appl.
        22(3), 2001, section 3.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` must be between 0 and 1, got {tolerance}.")
    direction = generator(key).standard_normal(size)
    improbable = (np.linalg.norm(direction) / (FAILURE_PROBABILITY * math.sqrt(math.pi / 2))) ** 2
    basis, diagonal, beside = np.empty((size, 0)), list[float](), list[float]()
    while True:
        rounding = size * np.finfo(np.float64).eps * np.linalg.norm(direction)
        for _ in range(2):  # once leaves what rounding put back
            direction = direction - basis @ (basis.T @ direction)
        length = float(np.linalg.norm(direction))
        largest = _largest(diagonal, beside[1:])
        beside.append(length)
        if length <= rounding or len(diagonal) == size:  # all that the start can reach
            return math.sqrt(largest)
        beyond = largest / (1 - tolerance) ** 2
        known = diagonal and size > FEW_COLUMNS
        if known and _energy_of_polynomials(beyond, diagonal, beside[1:]) >= improbable:
            return math.sqrt(largest)
        basis = np.column_stack([basis, direction / length])
        direction = energy(basis[:, -1])
        diagonal.append(float(basis[:, -1] @ direction))


def _largest(diagonal: list[float], beside: list[float]) -> float:
    """Return the largest eigenvalue of a tridiagonal matrix that is positive semidefinite."""
    T = np.diag(diagonal) + np.diag(beside, -1)  # the lower triangle
    return max(0.0, *eigvalsh(T)) if diagonal else 0.0


def _energy_of_polynomials(t: float, diagonal: list[float], beside: list[float]) -> float:
    """Return the sum of the squares of the Lanczos polynomials at ``t``, from their recurrence."""
    last, p, before, total = 0.0, 1.0, 0.0, 1.0
    for a, b in zip(diagonal, beside, strict=True):
        last, p, before = p, ((t - a) * p - before * last) / b, b
        total += p * p
    return total
