"""Rounding to few bits that lets later entries make up for the errors of earlier ones."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from plastic_core.linalg import Float32, Float64
from plastic_core.loss.gram_root import damped_cholesky
from plastic_core.rounding.grid import Grid, fitted_grid, rounded_grid


@dataclass
class Rounded:
    """A weight and the codes found for it, both transposed: entry ``(j, i)`` is of row i.

    Attributes:
        W: The weight transposed, shape ``(n, m)``.
        codes: Whole numbers, shape ``(n, m)``.
        grids: One per group of inputs.
        error: ``W`` minus what the codes stand for.
        group_size: Inputs per group.
        dtype: What the levels are stored in.
    """

    W: Float32
    codes: Float32
    grids: list[Grid]
    error: Float32
    group_size: int
    dtype: mx.Dtype

    def groups(self) -> list[slice]:
        """The inputs of each group."""
        size = self.group_size
        return [slice(start, start + size) for start in range(0, len(self.W), size)]


def round_with_feedback(
    W: Float32, H: Float64, bits: int, group_size: int, dtype: mx.Dtype
) -> Rounded:
    r"""Round the inputs of a weight in turn; each makes up for the errors of those before it.

    With the factorisation :math:`H = (I + F) \Delta (I + F)^T`, F strictly upper triangular,
    :math:`\Delta` diagonal, and the error :math:`E = \hat W - W`,

    .. math::

        \mathrm{tr}(E H E^T) = \|(E + E F) \Delta^{1/2}\|_F^2, \qquad
        \hat w_j = \mathrm{round}(w_j - E F_j),

    so the rounding error of column j counts :math:`\Delta_j` and nothing else. The levels of a
    group are fitted, with these weights, to the columns as they are when its turn comes.

    Args:
        W: The weight transposed, shape ``(n, m)``.
        H: Symmetric positive definite, shape ``(n, n)``.
        bits: Bits per code.
        group_size: A divisor of n.
        dtype: What the levels are stored in.

    References:
        Frantar et al., *GPTQ*, arXiv 2210.17323, in the form of Chee et al., *QuIP*,
        arXiv 2307.13304, theorem 6: the same numbers without an inverse of H.
    """
    F, pivots = feedback_of(H)
    found = Rounded(W, np.empty_like(W), [], np.empty_like(W), group_size, dtype)
    for rows in found.groups():
        T = W[rows] + F[: rows.start, rows].T @ found.error[: rows.start]
        grid = fitted_grid(T, pivots[rows], bits, dtype)
        found.grids.append(grid)
        for j in range(rows.start, rows.stop):
            done = slice(rows.start, j)
            target = T[j - rows.start] + F[done, j] @ found.error[done]
            found.codes[j] = grid.codes(target)
            found.error[j] = W[j] - grid.values(found.codes[j])
    return found


def feedback_of(H: Float64) -> tuple[Float32, Float32]:
    """F and the diagonal of Delta, float32: see `round_with_feedback`."""
    upper = damped_cholesky(H[::-1, ::-1])[::-1, ::-1]
    pivots = np.diagonal(upper).copy()
    upper /= pivots
    return np.triu(upper.astype(np.float32), 1), (pivots**2).astype(np.float32)


def descend(found: Rounded, H: Float32) -> None:
    """Lower ``tr(E H E^T)`` in place: for one group after the other new levels, then new codes.

    Block coordinate descent, one sweep. Every step is the exact minimum over what it changes, all
    else fixed, or leaves it as it is: the error does not rise, but for rounding.

    Args:
        found: What `round_with_feedback` returned.
        H: As there, float32.
    """
    for index, rows in enumerate(found.groups()):
        gradient, square = H[rows] @ found.error, H[rows, rows]
        gradient += square @ _move_levels(found, index, rows, gradient, square)
        _move_codes(found, index, rows, gradient, square)


def _move_levels(
    found: Rounded, index: int, rows: slice, gradient: Float32, square: Float32
) -> Float32:
    """Move the levels of a group to their best place; return the change of its error."""
    codes, before = found.codes[rows], found.error[rows].copy()
    new = moved_levels(found.grids[index], codes, gradient, square, found.dtype)
    found.grids[index] = new
    found.error[rows] = found.W[rows] - new.values(codes)
    change: Float32 = found.error[rows] - before
    return change


def moved_levels(
    grid: Grid, codes: Float32, gradient: Float32, square: Float32, dtype: mx.Dtype
) -> Grid:
    """The levels at which ``2 tr(X^T gradient) + tr(X^T square X)`` is least, or the old ones.

    X, shape ``(g, m)``, is how far the entries of a group move away from what they stand for.
    """
    image = square @ codes
    a, b, c = (codes * image).sum(axis=0), image.sum(axis=0), square.sum()
    p, q = (codes * gradient).sum(axis=0), gradient.sum(axis=0)
    determinant = a * c - b * b
    safe = determinant > 1e-5 * a * c
    scale = np.divide(1, determinant, out=np.zeros_like(a), where=safe)
    step, start = grid.step + scale * (c * p - b * q), grid.start + scale * (a * q - b * p)
    new = rounded_grid(np.maximum(step, 0), start, grid.bits, dtype)
    x, y = new.step - grid.step, new.start - grid.start
    gain = 2 * (x * p + y * q) - (a * x * x + 2 * b * x * y + c * y * y)
    return new.where(gain > 0, grid)


def _move_codes(
    found: Rounded, index: int, rows: slice, gradient: Float32, square: Float32
) -> None:
    """Move the codes of a group to their best places, input by input."""
    grid, change = found.grids[index], np.zeros_like(gradient)
    for i, j in enumerate(range(rows.start, rows.stop)):
        slope = gradient[i] + square[i, :i] @ change[:i]
        found.codes[j] = grid.codes(found.W[j] - found.error[j] + slope / square[i, i])
        error = found.W[j] - grid.values(found.codes[j])
        change[i] = error - found.error[j]
        found.error[j] = error
