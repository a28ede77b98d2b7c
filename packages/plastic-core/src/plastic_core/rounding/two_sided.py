"""Rounding in which errors are made up for along the inputs and along the outputs.

The letters are those of ``one_sided``.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from plastic_core.linalg import Float32
from plastic_core.loss.feedback import Feedback
from plastic_core.rounding.grid import Grid, fitted_grid
from plastic_core.rounding.one_sided import Rounded, moved_levels

TILE_OUTPUTS = 64
"""Outputs of a tile; its inputs are those of a group."""


def round_two_sided(
    W: Float32,
    R: Feedback,
    C: Feedback,
    bits: int,
    group_size: int,
    dtype: mx.Dtype,
    sweeps: int,
) -> Rounded:
    """Round both ways, then descend: see `round_both_ways` and `descend_both_ways`."""
    result = round_both_ways(W, R, C, bits, group_size, dtype)
    for _ in range(sweeps):
        descend_both_ways(result, R.gram, C.gram)
    return result


def round_both_ways(
    W: Float32, R: Feedback, C: Feedback, bits: int, group_size: int, dtype: mx.Dtype
) -> Rounded:
    r"""Round so that ``tr(E^T R E C)`` is small, entry by entry.

    With :math:`R = (I + F) \Delta (I + F)^T`, :math:`C = (I + K) \Gamma (I + K)^T`, F and K
    strictly upper triangular, :math:`\Delta` and :math:`\Gamma` diagonal, and
    :math:`E = W - \hat W`,

    .. math::

        \mathrm{tr}(E^T R E C) = \|\Delta^{1/2} (I + F)^T E (I + K) \Gamma^{1/2}\|_F^2, \qquad
        \hat W = \mathrm{round}(W + E K + F^T E (I + K)),

    in which entry (j, i) needs those above it and to its left: its rounding error counts
    :math:`\Delta_j \Gamma_i` and nothing else. Entries on one antidiagonal of a tile need none of
    each other and are rounded together. The levels of a group are fitted to what is known before
    its tile.

    Args:
        W: The weight transposed, shape ``(n, m)``.
        R: Gram of the inputs, shape ``(n, n)``.
        C: Gram of the gradients at the outputs, shape ``(m, m)``.
        bits: Bits per code.
        group_size: A divisor of n.
        dtype: What the levels are stored in.

    References:
        Tseng, Sun and De Sa, *Model-preserving adaptive rounding*, arXiv 2505.22988.
    """
    F, K, E = R.F, C.F, np.empty_like(W)
    result = Rounded(W, np.empty_like(W), [], E, group_size, dtype)
    levels = np.empty((2, len(result.groups()), W.shape[1]), np.float32)
    for outputs in _tiles(W.shape[1]):
        EK = E[:, : outputs.start] @ K[: outputs.start, outputs]  # (n, t), of the tiles before
        EIK = np.zeros_like(EK)  # E (I + K)
        for index, inputs in enumerate(result.groups()):
            tile = inputs, outputs
            W_tile = np.ascontiguousarray(W[tile])  # (g, t)
            FtEIK = F[: inputs.start, inputs].T @ EIK[: inputs.start]  # (g, t), of those groups
            T = W_tile + EK[inputs] + FtEIK
            grid = fitted_grid(T, R.pivots[inputs], bits, dtype)
            levels[:, index, outputs] = grid.step, grid.start
            rounded = _round_tile(W_tile, T, FtEIK, F[inputs, inputs], K[outputs, outputs], grid)
            result.codes[tile], E[tile], EIK[inputs] = rounded
    result.grids += [Grid(step, start, bits) for step, start in np.moveaxis(levels, 0, 1)]
    return result


def _round_tile(
    W: Float32, T: Float32, FtEIK: Float32, F: Float32, K: Float32, grid: Grid
) -> tuple[Float32, Float32, Float32]:
    """Codes, ``E`` and ``E (I + K)`` of one tile, all ``(g, t)``.

    ``T`` is ``W + E K + F^T E (I + K)`` with what the tiles before contribute, ``FtEIK`` its last
    term; F and K are the blocks of the tile.
    """
    codes, E, EIK = np.empty_like(W), np.zeros_like(W), np.zeros_like(W)
    nearest, W_plus_EK = _Nearest(grid), T - FtEIK
    for wave in _waves(*W.shape):
        j, i = wave.j, wave.i  # (w,)
        EK = np.einsum("wk,kw->w", E[j], K[:, i])
        FtEIK_here = np.einsum("kw,kw->w", F[:, j], EIK[:, i])
        chosen, value = nearest(wave.of(T) + EK + FtEIK_here, i)
        wave.of(codes)[:] = chosen
        wave.of(E)[:] = wave.of(W) - value
        wave.of(EIK)[:] = wave.of(W_plus_EK) + EK - value
    return codes, E, EIK


def descend_both_ways(result: Rounded, R: Float32, C: Float32) -> None:
    """Lower ``tr(E^T R E C)`` in place: for one tile after the other new levels, then new codes.

    Outputs of a tile take their levels, and entries of an antidiagonal their codes, as if the
    others of them stayed: a tile that does not gain by it is left as it is. One sweep.

    Args:
        result: What `round_both_ways` returned.
        R: The Gram of the inputs that it was rounded under, shape ``(n, n)``.
        C: That of the gradients, shape ``(m, m)``.
    """
    EC = result.E @ C  # (n, m)
    for outputs in _tiles(C.shape[0]):
        for index, inputs in enumerate(result.groups()):
            for move in (_levels_moved, _codes_moved):
                REC = R[inputs] @ EC[:, outputs]  # (g, t)
                loss = _TileLoss(REC, R[inputs, inputs], C[outputs, outputs])
                grid, codes = move(result, index, (inputs, outputs), loss)
                change = result.W[inputs, outputs] - grid.values(codes)
                change -= result.E[inputs, outputs]
                if loss.rise(change) < 0:
                    result.codes[inputs, outputs] = codes
                    result.E[inputs, outputs] += change
                    result.grids[index].step[outputs] = grid.step
                    result.grids[index].start[outputs] = grid.start
                    EC[inputs] += change @ C[outputs]


class _TileLoss(NamedTuple):
    """The loss ``tr(E^T R E C)`` as a function of the error of one tile.

    Attributes:
        REC: Half its gradient, where the tile is now, shape ``(g, t)``.
        R: Its block of R.
        C: Its block of C.
    """

    REC: Float32
    R: Float32
    C: Float32

    def rise(self, X: Float32) -> float:
        """Return by how much it rises as X is added to the error."""
        square = np.vdot(self.R @ X, X @ self.C)
        return float(2 * np.vdot(X, self.REC) + square)


Tile = tuple[slice, slice]
"""Inputs and outputs."""


def _levels_moved(result: Rounded, index: int, tile: Tile, loss: _TileLoss) -> tuple[Grid, Float32]:
    grid, codes = _grid(result, index, tile[1]), result.codes[tile]
    powers: Float32 = np.diagonal(loss.C)  # (t,)
    return moved_levels(grid, codes, loss.REC / powers, loss.R, result.dtype), codes


def _codes_moved(result: Rounded, index: int, tile: Tile, loss: _TileLoss) -> tuple[Grid, Float32]:
    REC, R, C = loss
    grid = _grid(result, index, tile[1])
    W, E = np.ascontiguousarray(result.W[tile]), np.ascontiguousarray(result.E[tile])
    wanted = W - E + REC / np.outer(np.diagonal(R), np.diagonal(C))
    weights = R / np.diagonal(R)
    codes, XC = np.empty_like(W), np.zeros_like(W)  # X: how the error has changed so far
    nearest = _Nearest(grid)
    for wave in _waves(*W.shape):
        j, i = wave.j, wave.i  # (w,)
        slope = np.einsum("kw,kw->w", weights[:, j], XC[:, i]) / np.diagonal(C)[i]
        chosen, value = nearest(wave.of(wanted) + slope, i)
        wave.of(codes)[:] = chosen
        X = wave.of(W) - value - wave.of(E)
        XC[j] += X[:, None] * C[i]
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


def _grid(result: Rounded, index: int, outputs: slice) -> Grid:
    grid = result.grids[index]
    return Grid(grid.step[outputs], grid.start[outputs], grid.bits)


def _tiles(outputs: int) -> list[slice]:
    starts = range(0, outputs, TILE_OUTPUTS)
    return [slice(start, start + TILE_OUTPUTS) for start in starts]


class _Wave(NamedTuple):
    """The w entries of an antidiagonal of a tile.

    Attributes:
        j: Their inputs.
        i: Their outputs.
        flat: Where they are in the tile, counted row by row.
    """

    j: slice
    i: slice
    flat: slice

    def of(self, tile: Float32) -> Float32:
        """Return a view of these entries of a contiguous tile, shape ``(w,)``."""
        return tile.reshape(-1)[self.flat]


@cache
def _waves(n: int, m: int) -> tuple[_Wave, ...]:
    """Return the antidiagonals of a tile of n inputs and m outputs, each by increasing outputs.

    Entry (j, i) needs the entries above it and to its left, so it comes in wave ``j + i``. The
    waves of a tile of 3 x 4, and the places in memory::

        j\\i  0 1 2 3        flat  0  1  2  3
        0    0 1 2 3              4  5  6  7
        1    1 2 3 4              8  9 10 11
        2    2 3 4 5

    Wave 3 is (2, 1), (1, 2), (0, 3): j falls as i rises, and a step from one to the next is
    ``1 - m`` places. NumPy takes slices for views, so a wave is three of them:

        >>> _waves(3, 4)[3]
        _Wave(j=slice(2, None, -1), i=slice(1, 4, 1), flat=slice(9, 0, -3))
        >>> np.arange(12)[_waves(3, 4)[3].flat].tolist()
        [9, 6, 3]
    """
    waves, step = [], 1 - m if m > 1 else 1
    for wave in range(n + m - 1):
        i = range(max(0, wave - n + 1), min(m, wave + 1))
        j = range(wave - i.start, wave - i.stop, -1)
        first = j.start * m + i.start
        flat = range(first, first + len(i) * step, step)
        waves.append(_Wave(*map(_as_slice, (j, i, flat))))
    return tuple(waves)


def _as_slice(numbers: range) -> slice:
    """Return the slice that picks these positions; a stop before the first one is None."""
    return slice(numbers.start, numbers.stop if numbers.stop >= 0 else None, numbers.step)
