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

CACHED = 2**16  # entries of a float64 block that stays in the second-level cache


def frobenius_norm(A: Matrix) -> float:
    """Square root of the sum of squares, in float64: no float32 matrix over- or underflows it."""
    return math.sqrt(squared_norm(as_matrix(A)))


def squared_norm(A: NDArray[Any]) -> float:
    """Sum of squares in float64, one cache-sized block at a time; not finite if an entry is not."""
    total, step = 0.0, max(1, CACHED // max(1, A.shape[1]))
    for start in range(0, len(A), step):
        block = A[start : start + step].astype(np.float64)
        total += float(np.vdot(block, block))
    return total


def spectral_norm(A: Matrix, *, tolerance: float = 1e-2, key: int | mx.array = 0) -> float:
    """The largest singular value of ``A``, without a factorisation.

    Args:
        A: Matrix of shape ``(m, n)``.
        tolerance: See `operator_norm`.
        key: Seed or key of the random starting vector.

    Returns:
        A lower bound of the norm, 0.0 for a zero or empty matrix.
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
    """The largest singular value of an operator D that is known through ``x -> D.T @ (D @ x)``.

    Lanczos iteration with full re-orthogonalisation (Golub and Van Loan, *Matrix Computations*,
    4th ed., section 10.1), started at random. A small residual only tells that some eigenvalue is
    near; so the number of steps comes from a bound that needs no gap between the eigenvalues.

    Args:
        energy: The product ``D.T @ (D @ x)`` for float64 vectors ``x`` of shape ``(size,)``.
        size: Number of columns of D.
        tolerance: Largest relative error of the result, in (0, 1).
        key: Seed or key of the random starting vector.

    Returns:
        A lower bound of the norm, within ``tolerance`` of it with probability 0.999 over the
        starting vector, whatever the spectrum.

    Note:
        At most ``size`` steps, and at most 43 at the default tolerance for ``size`` = 10,000.

    References:
        Kuczynski and Wozniakowski, *Estimating the largest eigenvalue by the power and Lanczos
        algorithms with a random start*, SIAM J. Matrix Anal. Appl. 13(4), 1992, theorem 4.2: after
        k steps the relative error of the eigenvalue exceeds e with a probability of at most
        1.648 sqrt(size) exp(-sqrt(e) (2 k - 1)). https://doi.org/10.1137/0613066
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` must be between 0 and 1, got {tolerance}.")
    direction = generator(key).standard_normal(size)
    basis, images = np.empty((size, 0)), np.empty((size, 0))
    for _ in range(_lanczos_steps(size, tolerance)):
        rounding = size * np.finfo(np.float64).eps * np.linalg.norm(direction)
        for _ in range(2):  # once leaves what rounding put back
            direction = direction - basis @ (basis.T @ direction)
        length = np.linalg.norm(direction)
        if length <= rounding:  # all that the start can reach has been seen
            break
        basis = np.column_stack([basis, direction / length])
        direction = energy(basis[:, -1])
        images = np.column_stack([images, direction])
    energies = eigvalsh(basis.T @ images)
    return float(np.sqrt(max(0.0, energies[0]))) if energies.size else 0.0


def _lanczos_steps(size: int, tolerance: float, failure: float = 1e-3) -> int:
    """Steps after which the relative error of the root of the largest eigenvalue is in bounds."""
    if size == 0:
        return 0
    exponent = math.log(1.648 * math.sqrt(size) / failure)
    of_eigenvalue = tolerance * (2 - tolerance)
    return min(size, math.ceil((exponent / math.sqrt(of_eigenvalue) + 1) / 2))
