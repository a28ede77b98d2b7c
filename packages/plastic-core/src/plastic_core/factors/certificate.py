"""The certificate of stored factors: their distance from the matrix, in both norms."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np

from plastic_core.factors.factors import Certificate
from plastic_core.factors.operators import Operand, Operator, Residual, as_operator
from plastic_core.linalg import Matrix
from plastic_core.linalg.norms import operator_norm

TOLERANCE = 0.08
"""Of the spectral norm of a difference, relative."""
NORM_TOLERANCE = 0.01
"""Of the spectral norm of a matrix, relative."""


def certify(A: Operand, U: Matrix, Vh: Matrix, *, key: int | mx.array = 0) -> Certificate:
    """Measure ``A - U @ Vh`` for the factors as they are stored.

    The errors are those of the cast or dequantised numbers that are handed in, not of the ideal
    factors they came from.

    Args:
        A: Matrix of shape ``(m, n)``, or what `difference` takes.
        U: Matrix of shape ``(m, r)``, any floating dtype; ``r = 0`` is allowed.
        Vh: Matrix of shape ``(r, n)``, the singular values folded into it or into ``U``.
        key: Seed or key of the random vectors behind the spectral bound.

    Returns:
        Both relative errors; 0.0 where a zero matrix is met exactly, infinity where it is not. The
        Frobenius error is exact to 1e-3 of itself. The spectral error is an upper bound with
        probability 0.998, at most 1.1 times the true one (`operator_norm`).

    Raises:
        TypeError: If an argument does not hold floating-point numbers.
        ValueError: If an argument is not a finite matrix or the shapes do not fit together.

    Note:
        One product of O(m n r) operations, in float64 where float32 would round too much, and up
        to 64 products with a vector. Of the difference only a block of 16 MiB exists at any time.

    Examples:
        >>> U, Vh = np.array([[4.0], [0.0]]), np.array([[1.0, 0.0]])
        >>> certify(np.diag([4.0, 3.0]), U, Vh).relative_error
        0.6
    """
    operator = as_operator(A)
    (m, n), u, v = operator.shape, np.shape(U), np.shape(Vh)
    if len(u) != 2 or len(v) != 2 or (u[0], v[1], u[1]) != (m, n, v[0]):
        raise ValueError(
            f"`U` and `Vh` must have shapes ({m}, r) and (r, {n}) for a matrix of shape {(m, n)}, "
            f"got {u} and {v}."
        )
    E = Residual(operator, U, Vh)
    norm, error = operator.norm(), E.norm()
    bound, largest = spectral_bound(E, error, key), operator_spectral_norm(operator, norm, key)
    return Certificate(ratio(error, norm), ratio(bound, largest))


def spectral_bound(E: Operator, error: float, key: int | mx.array) -> float:
    """Return an upper bound of ``||E||_2``, at most 1 / 0.92 too large, with probability 0.999.

    Args:
        E: The operator.
        error: Its Frobenius norm.
        key: Seed or key of the random vector.
    """
    if error == 0.0:
        return 0.0
    energy = partial(E.normal_times, scale=1 / error, dtype=E.precision(error))
    estimate = operator_norm(energy, E.shape[1], tolerance=TOLERANCE, key=key)
    return min(error, estimate / (1 - TOLERANCE))


def operator_spectral_norm(A: Operator, norm: float, key: int | mx.array) -> float:
    """Return a lower bound of ``||A||_2``, within one percent with probability 0.999."""
    if norm == 0.0:
        return 0.0
    energy = partial(A.normal_times, scale=1 / norm, dtype=A.precision(norm))
    return operator_norm(energy, A.shape[1], tolerance=NORM_TOLERANCE, key=key)


def ratio(error: float, norm: float) -> float:
    """Return ``error / norm``; for a zero norm 0.0 where it is met exactly, infinity where not."""
    if norm == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / norm
