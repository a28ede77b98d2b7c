"""Rounding in which errors are made up for along the inputs and along the outputs."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from plastic_core.linalg import Float32, Float64
from plastic_core.rounding.grid import Grid, fitted_grid
from plastic_core.rounding.one_sided import Rounded, feedback_of, moved_levels

OUTPUTS = 64  # of a tile


def round_both_ways(
    W: Float32, R: Float64, C: Float64, bits: int, group_size: int, dtype: mx.Dtype
) -> Rounded:
    r"""Round so that ``tr(C E R E^T)`` is small, entry by entry.

    With :math:`R = (I + F) \Delta (I + F)^T`, :math:`C = (I + K) \Gamma (I + K)^T`, F and K
    strictly upper triangular, :math:`\Delta` and :math:`\Gamma` diagonal, and
    :math:`E = W - \hat W`,

    .. math::

        \mathrm{tr}(C E R E^T) = \|\Gamma^{1/2} (I + K)^T E (I + F) \Delta^{1/2}\|_F^2, \qquad
        \hat W = \mathrm{round}(W + K^T E + (I + K)^T E F),

    in which an entry depends on those above it and to its left: its rounding error counts
    :math:`\Gamma_i \Delta_j` and nothing else. Entries on one antidiagonal of a tile are rounded
    together. The levels of a group are fitted to what is known before its tile.

    Args:
        W: The weight transposed, shape ``(n, m)``.
        R: Gram of the inputs, symmetric positive definite, shape ``(n, n)``.
        C: Gram of the gradients at the outputs, symmetric positive definite, shape ``(m, m)``.
        bits: Bits per code.
        group_size: A divisor of n.
        dtype: What the levels are stored in.

    References:
        Tseng, Sun and De Sa, *Model-preserving adaptive rounding*, arXiv 2505.22988.
    """
    (F, pivots), (K, _) = feedback_of(R), feedback_of(C)
    found = Rounded(W, np.empty_like(W), [], np.empty_like(W), group_size, dtype)
    levels = np.empty((2, len(found.groups()), W.shape[1]), np.float32)
    for outputs in _tiles(W.shape[1]):
        above = found.error[:, : outputs.start] @ K[: outputs.start, outputs]
        known = np.zeros_like(above)  # (I + K)^T E
        for index, inputs in enumerate(found.groups()):
            tile, block = (inputs, outputs), np.ascontiguousarray(W[inputs, outputs])
            left = F[: inputs.start, inputs].T @ known[: inputs.start]
            target = block + above[inputs] + left
            grid = fitted_grid(target, pivots[inputs], bits, dtype)
            levels[:, index, outputs] = grid.step, grid.start
            rounded = _round_tile(target, left, block, F[inputs, inputs], K[outputs, outputs], grid)
            found.codes[tile], found.error[tile], known[inputs] = rounded
    found.grids += [Grid(step, start, bits) for step, start in np.moveaxis(levels, 0, 1)]
    return found


def _round_tile(
    target: Float32, left: Float32, W: Float32, F: Float32, K: Float32, grid: Grid
) -> tuple[Float32, Float32, Float32]:
    """Codes, errors, and errors with what those above them add, of one tile."""
    codes, error, known = np.empty_like(W), np.zeros_like(W), np.zeros_like(W)
    nearest, base = _Nearest(grid), target - left
    for wave in _waves(*W.shape):
        j, i = wave.inputs, wave.outputs
        above = np.einsum("wk,kw->w", error[j], K[:, i])
        beside = np.einsum("kw,kw->w", F[:, j], known[:, i])
        chosen, value = nearest(wave.of(target) + above + beside, i)
        wave.of(codes)[:] = chosen
        wave.of(error)[:] = wave.of(W) - value
        wave.of(known)[:] = wave.of(base) + above - value
    return codes, error, known


def descend_both_ways(found: Rounded, R: Float32, C: Float32) -> None:
    """Lower ``tr(C E R E^T)`` in place: for one tile after the other new levels, then new codes.

    Outputs of a tile take their levels, and entries of an antidiagonal their codes, as if the
    others of them stayed: a tile that does not gain by it is left as it is. One sweep.

    Args:
        found: What `round_both_ways` returned.
        R: As there, float32.
        C: As there, float32.
    """
    image = found.error @ C
    for outputs in _tiles(C.shape[0]):
        for index, inputs in enumerate(found.groups()):
            for move in (_levels_moved, _codes_moved):
                gradient = R[inputs] @ image[:, outputs]
                cost = _Cost(gradient, R[inputs, inputs], C[outputs, outputs])
                grid, codes = move(found, index, (inputs, outputs), cost)
                change = found.W[inputs, outputs] - grid.values(codes)
                change -= found.error[inputs, outputs]
                if cost.of(change) < 0:
                    found.codes[inputs, outputs] = codes
                    found.error[inputs, outputs] += change
                    found.grids[index].step[outputs] = grid.step
                    found.grids[index].start[outputs] = grid.start
                    image[inputs] += change @ C[outputs]


class _Cost(NamedTuple):
    """What ``tr(C E R E^T)`` is as a function of the error of one tile.

    Attributes:
        gradient: Half of it, where the tile is now.
        R: Its block of R.
        C: Its block of C.
    """

    gradient: Float32
    R: Float32
    C: Float32

    def of(self, change: Float32) -> float:
        """By how much a change of the error raises it."""
        square = np.vdot(self.R @ change, change @ self.C)
        return float(2 * np.vdot(change, self.gradient) + square)


Tile = tuple[slice, slice]  # inputs and outputs


def _levels_moved(found: Rounded, index: int, tile: Tile, cost: _Cost) -> tuple[Grid, Float32]:
    grid, codes = _grid(found, index, tile[1]), found.codes[tile]
    powers: Float32 = np.diagonal(cost.C)
    return moved_levels(grid, codes, cost.gradient / powers, cost.R, found.dtype), codes


def _codes_moved(found: Rounded, index: int, tile: Tile, cost: _Cost) -> tuple[Grid, Float32]:
    gradient, R, C = cost
    grid = _grid(found, index, tile[1])
    W, error = np.ascontiguousarray(found.W[tile]), np.ascontiguousarray(found.error[tile])
    wanted = W - error + gradient / np.outer(np.diagonal(R), np.diagonal(C))
    weights = R / np.diagonal(R)
    codes, image = np.empty_like(W), np.zeros_like(W)  # of the change so far, times C
    nearest = _Nearest(grid)
    for wave in _waves(*W.shape):
        j, i = wave.inputs, wave.outputs
        slope = np.einsum("kw,kw->w", weights[:, j], image[:, i]) / np.diagonal(C)[i]
        chosen, value = nearest(wave.of(wanted) + slope, i)
        wave.of(codes)[:] = chosen
        change = wave.of(W) - value - wave.of(error)
        image[j] += change[:, None] * C[i]
    return grid, codes


class _Nearest:
    """Codes and levels nearest to entries of some of the outputs, for many small calls."""

    def __init__(self, grid: Grid) -> None:
        self.step, self.start, self.top = grid.step, grid.start, np.float32(2**grid.bits - 1)
        self.inverse = 1 / np.where(grid.step > 0, grid.step, np.float32(1))

    def __call__(self, entries: Float32, outputs: slice) -> tuple[Float32, Float32]:
        start = self.start[outputs]
        codes = np.rint((entries - start) * self.inverse[outputs])
        np.minimum(np.maximum(codes, 0, out=codes), self.top, out=codes)
        return codes, codes * self.step[outputs] + start


def _grid(found: Rounded, index: int, outputs: slice) -> Grid:
    grid = found.grids[index]
    return Grid(grid.step[outputs], grid.start[outputs], grid.bits)


def _tiles(outputs: int) -> list[slice]:
    return [slice(start, start + OUTPUTS) for start in range(0, outputs, OUTPUTS)]


class _Wave(NamedTuple):
    """The entries of an antidiagonal of a tile.

    Attributes:
        inputs: Of the entries, the last one first.
        outputs: Of the entries.
        flat: Where they are in the tile, row by row.
    """

    inputs: slice
    outputs: slice
    flat: slice

    def of(self, tile: Float32) -> Float32:
        """A view of these entries of a contiguous tile."""
        return tile.reshape(-1)[self.flat]


@cache
def _waves(inputs: int, outputs: int) -> tuple[_Wave, ...]:
    """All antidiagonals of a tile of this shape, from the first entry on."""
    waves = []
    for total in range(inputs + outputs - 1):
        first, stop = max(0, total - inputs + 1), min(outputs, total + 1)
        begin, last = ((total - i) * outputs + i for i in (first, stop - 1))
        step = 1 - outputs if stop - first > 1 else 1
        flat = slice(begin, _beyond(last, step), step)
        inner = slice(total - first, _beyond(total - stop + 1, -1), -1)
        waves.append(_Wave(inner, slice(first, stop), flat))
    return tuple(waves)


def _beyond(last: int, step: int) -> int | None:
    """The end of a slice whose last position is ``last``."""
    return last + 1 if step > 0 else last - 1 if last > 0 else None
