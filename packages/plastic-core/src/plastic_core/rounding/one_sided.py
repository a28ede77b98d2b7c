"""Rounding under the Gram of the inputs: later inputs make up for the errors of earlier ones.

In this module and in ``two_sided`` a weight of n inputs and m outputs is transposed, (n, m), R is
the Gram of the inputs, (n, n), and C that of the gradients at the outputs, (m, m). The error is
``E = W - W^`` with W^ what the codes stand for.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from plastic_core.linalg import Float32
from plastic_core.loss.feedback import Feedback
from plastic_core.rounding.grid import Grid, fitted_grid, rounded_grid


@dataclass
class Rounded:
    """A weight and the codes found for it, one input per row.

    Attributes:
        W: The weight transposed, shape ``(n, m)``.
        codes: Whole numbers, shape ``(n, m)``.
        grids: One per group of inputs.
        E: ``W`` minus what the codes stand for, shape ``(n, m)``.
        group_size: Inputs per group.
        dtype: What the levels are stored in.
    """

    W: Float32
    codes: Float32
    grids: list[Grid]
    E: Float32
    group_size: int
    dtype: mx.Dtype

    def groups(self) -> list[slice]:
        """Return the inputs of each group."""
        size = self.group_size
        return [slice(start, start + size) for start in range(0, len(self.W), size)]


def round_one_sided(
    W: Float32, R: Feedback, bits: int, group_size: int, dtype: mx.Dtype, sweeps: int
) -> Rounded:
    """Round with feedback, then descend: see `round_with_feedback` and `descend`."""
    result = round_with_feedback(W, R, bits, group_size, dtype)
    for _ in range(sweeps):
        descend(result, R.gram)
    return result


def round_with_feedback(
    W: Float32, R: Feedback, bits: int, group_size: int, dtype: mx.Dtype
) -> Rounded:
    r"""Round the inputs of a weight in turn; each makes up for the errors of those before it.

    With :math:`R = (I + F) \Delta (I + F)^T`, F strictly upper triangular, :math:`\Delta` diagonal,
    and :math:`E = W - \hat W`,

    .. math::

        \mathrm{tr}(E^T R E) = \|\Delta^{1/2} (I + F)^T E\|_F^2, \qquad
        \hat W = \mathrm{round}(W + F^T E),

    in which row j needs the rows above it alone: its rounding error counts :math:`\Delta_j` and
    nothing else. The levels of a group are fitted, with these weights, to its rows as they are when
    its turn comes.

    Args:
        W: The weight transposed, shape ``(n, m)``.
        R: Gram of the inputs, shape ``(n, n)``.
        bits: Bits per code.
        group_size: A divisor of n.
        dtype: What the levels are stored in.

    References:
        Frantar et al., *GPTQ*, arXiv 2210.17323, in the form of Chee et al., *QuIP*,
        arXiv 2307.13304, theorem 6: the same numbers without an inverse of R.
    """
    F, E = R.F, np.empty_like(W)
    result = Rounded(W, np.empty_like(W), [], E, group_size, dtype)
    for rows in result.groups():
        T = W[rows] + F[: rows.start, rows].T @ E[: rows.start]  # (g, m)
        grid = fitted_grid(T, R.pivots[rows], bits, dtype)
        result.grids.append(grid)
        for j in range(rows.start, rows.stop):
            above = slice(rows.start, j)
            target = T[j - rows.start] + F[above, j] @ E[above]  # (m,)
            result.codes[j] = grid.codes(target)
            E[j] = W[j] - grid.values(result.codes[j])
    return result


def descend(result: Rounded, R: Float32) -> None:
    """Lower ``tr(E^T R E)`` in place: for one group after the other new levels, then new codes.

    Block coordinate descent, one sweep. Every step is the exact minimum over what it changes, all
    else fixed, or leaves it as it is: the error does not rise, but for rounding.

    Args:
        result: What `round_with_feedback` returned.
        R: The Gram it was rounded under, shape ``(n, n)``.
    """
    for index, rows in enumerate(result.groups()):
        RE, R_group = R[rows] @ result.E, R[rows, rows]  # (g, m), (g, g)
        RE += R_group @ _move_levels(result, index, rows, RE, R_group)
        _move_codes(result, index, rows, RE, R_group)


def _move_levels(
    result: Rounded, index: int, rows: slice, RE: Float32, R_group: Float32
) -> Float32:
    """Move the levels of a group to their best place; return the change of its error."""
    codes, before = result.codes[rows], result.E[rows].copy()
    new = moved_levels(result.grids[index], codes, RE, R_group, result.dtype)
    result.grids[index] = new
    result.E[rows] = result.W[rows] - new.values(codes)
    change: Float32 = result.E[rows] - before
    return change


def moved_levels(
    grid: Grid, codes: Float32, gradient: Float32, R_group: Float32, dtype: mx.Dtype
) -> Grid:
    """Return the levels of greatest ``2 tr(X^T gradient) - tr(X^T R_group X)``, or the old ones.

    X, shape ``(g, m)``, is by how much the values of a group rise, and its error falls.
    """
    image = R_group @ codes
    a, b, c = (codes * image).sum(axis=0), image.sum(axis=0), R_group.sum()
    p, q = (codes * gradient).sum(axis=0), gradient.sum(axis=0)
    determinant = a * c - b * b
    safe = determinant > 1e-5 * a * c
    scale = np.divide(1, determinant, out=np.zeros_like(a), where=safe)
    step, start = grid.step + scale * (c * p - b * q), grid.start + scale * (a * q - b * p)
    new = rounded_grid(np.maximum(step, 0), start, grid.bits, dtype)
    x, y = new.step - grid.step, new.start - grid.start  # X = x codes + y
    gain = 2 * (x * p + y * q) - (a * x * x + 2 * b * x * y + c * y * y)
    return new.where(gain > 0, grid)


def _move_codes(result: Rounded, index: int, rows: slice, RE: Float32, R_group: Float32) -> None:
    """Move the codes of a group to their best places, input by input."""
    grid, change = result.grids[index], np.zeros_like(RE)
    for i, j in enumerate(range(rows.start, rows.stop)):
        slope = RE[i] + R_group[i, :i] @ change[:i]  # (m,)
        result.codes[j] = grid.codes(result.W[j] - result.E[j] + slope / R_group[i, i])
        error = result.W[j] - grid.values(result.codes[j])
        change[i] = error - result.E[j]
        result.E[j] = error
