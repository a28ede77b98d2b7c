"""What stored factors cost: their distance from the matrix, in both norms."""

from __future__ import annotations

import math
from functools import partial

import mlx.core as mx
import numpy as np
from numpy.typing import DTypeLike

from plastic_core.factors import Certificate
from plastic_core.linalg import Matrix, operator_norm
from plastic_core.operators import Factored, Operand, Operator, Residual, as_operator

TOLERANCE = 0.05  # relative, of the spectral norm of a difference
NORM_TOLERANCE = 0.01  # relative, of the spectral norm of a matrix
EPS = float(np.finfo(np.float32).eps)


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
        probability 0.998, at most 1.07 times the true one (`linalg.operator_norm`).

    Raises:
        TypeError: If an argument does not hold floating-point numbers.
        ValueError: If an argument is not a finite matrix or the shapes do not fit together.

    Note:
        One product of O(m n r) operations, in float64 where float32 would round too much, and 64
        products with a vector. Of the difference only a block of 16 MiB exists at any time.
    """
    operator = as_operator(A)
    (m, n), u, v = operator.shape, np.shape(U), np.shape(Vh)
    if len(u) != 2 or len(v) != 2 or (u[0], v[1], u[1]) != (m, n, v[0]):
        raise ValueError(
            f"`U` and `Vh` must have shapes ({m}, r) and (r, {n}) for a matrix of shape {(m, n)}, "
            f"got {u} and {v}."
        )
    norm = math.sqrt(operator.squared_norm())
    E = Residual(operator, U, Vh)
    error, dtype = measured_error(E, norm)
    return certificate(E, error, dtype, norm, spectral_norm(operator, norm, key), key)


def certificate(
    E: Residual, error: float, dtype: DTypeLike, norm: float, largest: float, key: int | mx.array
) -> Certificate:
    """The certificate of a residual whose Frobenius norm ``error`` is known.

    Args:
        E: The residual.
        error: Its Frobenius norm.
        dtype: Float32 where that is precise enough for products with E, else float64.
        norm: Frobenius norm of the matrix.
        largest: A lower bound of its spectral norm.
        key: Seed or key of the random vectors.
    """
    return Certificate(_ratio(error, norm), _ratio(spectral_bound(E, error, dtype, key), largest))


def measured_error(E: Residual, norm: float) -> tuple[float, DTypeLike]:
    """Frobenius norm of the residual, and the dtype in which its entries are exact enough.

    Rounding in float32 adds ``eps sqrt(r) ||A||_F`` at most, and in quadrature: it is uncorrelated
    with the residual. Below 32 times that the entries are computed in float64.
    """
    error = math.sqrt(E.squared_norm())
    if error >= precise_above(E.B) * norm:
        return error, np.float32
    return math.sqrt(E.squared_norm(np.float64)), np.float64


def precise_above(factored: Factored) -> float:
    """The relative error from which on a residual computed in float32 is exact to 1e-3."""
    return 32 * EPS * math.sqrt(factored.rank + 1)


def spectral_bound(E: Operator, error: float, dtype: DTypeLike, key: int | mx.array) -> float:
    """An upper bound of ``||E||_2``, with probability 0.999, at most 1 / 0.95 times too large."""
    if error == 0.0:
        return 0.0
    energy = partial(E.normal_times, scale=1 / error, dtype=dtype)
    estimate = operator_norm(energy, E.shape[1], tolerance=TOLERANCE, key=key)
    return min(error, estimate / (1 - TOLERANCE))


def spectral_norm(A: Operator, norm: float, key: int | mx.array) -> float:
    """A lower bound of ``||A||_2``, within one percent with probability 0.999."""
    if norm == 0.0:
        return 0.0
    energy = partial(A.normal_times, scale=1 / norm)
    return operator_norm(energy, A.shape[1], tolerance=NORM_TOLERANCE, key=key)


def _ratio(error: float, norm: float) -> float:
    if norm == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / norm
