"""Evenly spaced levels for a group of entries: ``start + step * code``."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from plastic_core.linalg import Float32, to_numpy

FITTING_ROUNDS = 4
"""Of fitting levels to codes: what the first two leave to gain is 1 percent."""


class Grid(NamedTuple):
    """The levels of one group in each of m rows, as they are stored.

    Attributes:
        step: Shape ``(m,)``, float32, not negative, rounded to the dtype it is stored in.
        start: Shape ``(m,)``, likewise: the level of code 0.
        bits: Bits per code.
    """

    step: Float32
    start: Float32
    bits: int

    def codes(self, T: Float32) -> Float32:
        """Return the codes, as whole numbers, of the levels nearest to ``T (..., m)``."""
        step = np.where(self.step > 0, self.step, np.float32(1))
        codes: Float32 = np.rint((T - self.start) / step)
        return np.clip(codes, 0, 2**self.bits - 1, out=codes)

    def values(self, codes: Float32) -> Float32:
        """Return the values that codes stand for."""
        return self.step * codes + self.start

    def where(self, wanted: np.ndarray, other: Grid) -> Grid:
        """This grid in the rows where ``wanted (m,)`` is true, else the other."""
        step = np.where(wanted, self.step, other.step)
        return Grid(step, np.where(wanted, self.start, other.start), self.bits)


def rounded_grid(step: Float32, start: Float32, bits: int, dtype: mx.Dtype) -> Grid:
    """Return a grid rounded to ``dtype``.

    Raises:
        ValueError: If the levels are beyond ``dtype``.
    """
    both = mx.array(np.stack([step, start]).astype(np.float32))
    rounded = to_numpy(both.astype(dtype, stream=mx.cpu).astype(mx.float32, stream=mx.cpu))
    if not np.isfinite(rounded).all():
        raise ValueError(
            f"The levels of a group overflow {dtype}. Choose a wider `dtype` or scale the weight "
            "down first."
        )
    return Grid(rounded[0], rounded[1], bits)


def fitted_grid(T: Float32, weights: Float32, bits: int, dtype: mx.Dtype) -> Grid:
    """Levels of nearly the least weighted squared error, for each column of ``T``.

    Starts with levels from the least to the largest entry and in turn assigns every entry to its
    level and fits the levels to the codes by least squares (Lloyd's method, held to even spacing).
    The error never rises; the result is a local minimum.

    Args:
        T: Entries, shape ``(g, m)``: one group per column.
        weights: The weights of the rows of ``T``, shape ``(g,)``, positive.
        bits: Bits per code.
        dtype: What the levels are stored in.
    """
    least, w = T.min(axis=0), (weights / weights.sum())[:, None]
    best = rounded_grid((T.max(axis=0) - least) / np.float32(2**bits - 1), least, bits, dtype)
    codes = best.codes(T)
    error = (w * (T - best.values(codes)) ** 2).sum(axis=0)
    for _ in range(FITTING_ROUNDS):
        grid = _least_squares(T, w, codes, best, dtype)
        codes = grid.codes(T)
        new = (w * (T - grid.values(codes)) ** 2).sum(axis=0)
        best = grid.where(new < error, best)
        error = np.minimum(new, error)
    return best


def _least_squares(T: Float32, w: Float32, codes: Float32, old: Grid, dtype: mx.Dtype) -> Grid:
    """Return the best levels for given codes; where all codes are equal, the old step."""
    centre, mean = (w * codes).sum(axis=0), (w * T).sum(axis=0)
    offsets = codes - centre
    variance = (w * offsets**2).sum(axis=0)
    covariance = (w * offsets * (T - mean)).sum(axis=0)
    step = np.divide(covariance, variance, out=old.step.copy(), where=variance > 1e-6)
    return rounded_grid(step, mean - step * centre, old.bits, dtype)
