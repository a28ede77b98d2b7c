"""A weight while it is rounded: codes, levels, and the error that is left.

Here and in ``one_sided``, ``two_sided`` and ``kernels`` a weight has m outputs and n inputs, R is
the Gram of the inputs, (n, n), and C that of the gradients at the outputs, (m, m). The error is
``E = W - W^`` with W^ what the codes stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_core.linalg import Float32

DROPPED = {mx.float32: 0, mx.bfloat16: 16, mx.float16: 13}
"""Bits of float32's mantissa that a type does not keep."""


class Grid(NamedTuple):
    """Evenly spaced levels ``start + step * code``, for every group of inputs of every output.

    Attributes:
        bits: Bits per code.
        group_size: Neighbouring inputs that share a step and a start.
        dtype: What these are stored in.
    """

    bits: int
    group_size: int
    dtype: mx.Dtype

    @property
    def top(self) -> np.float32:
        """The largest code."""
        return np.float32(2**self.bits - 1)

    @property
    def dropped(self) -> int:
        """Bits of float32's mantissa that the levels do without."""
        return DROPPED[self.dtype]

    def checked(self, levels: Float32) -> Float32:
        """Return levels that were rounded to ``dtype``, unless they are beyond it."""
        if not np.isfinite(levels).all():
            raise ValueError(
                f"The levels of a group overflow {self.dtype}. Choose a wider `dtype` or scale the "
                "weight down first."
            )
        return levels


class InputGroup(NamedTuple):
    """Inputs that share their levels: their number, and which they are."""

    number: int
    inputs: slice


@dataclass
class Rounded:
    """A weight and the codes found for it.

    Attributes:
        W: The weight, shape ``(m, n)``.
        grid: How its levels are spaced.
        codes: Shape ``(m, n)``.
        levels: Step and start, as they are stored, shape ``(2, m, n / group_size)``.
        E: ``W`` minus what the codes stand for, shape ``(m, n)``.
    """

    W: Float32
    grid: Grid
    codes: NDArray[np.uint8]
    levels: Float32
    E: Float32

    @classmethod
    def empty(cls, W: Float32, grid: Grid) -> Self:
        """To be filled group by group."""
        m, n = W.shape
        levels = np.empty((2, m, n // grid.group_size), np.float32)
        return cls(W, grid, np.empty((m, n), np.uint8), levels, np.empty_like(W))

    def of(self, outputs: slice) -> Rounded:
        """Return a view of some outputs."""
        W, codes, E = self.W[outputs], self.codes[outputs], self.E[outputs]
        return Rounded(W, self.grid, codes, self.levels[:, outputs], E)

    def groups(self, span: slice = slice(None)) -> Iterator[InputGroup]:
        """All groups, or those of a span of whole ones."""
        size = self.grid.group_size
        for start in range(self.W.shape[1])[span][::size]:
            yield InputGroup(start // size, slice(start, start + size))
