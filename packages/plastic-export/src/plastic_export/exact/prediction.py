"""The sum of stored factors, in arithmetic that gives the same bits everywhere.

A product in floating point depends on the order in which a library adds. Here every row of the
left factor and every column of the right one is rounded to whole numbers so small that float64
holds all of their sums exactly: then no order, no fused operation and no number of threads matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from plastic_core.linalg import Float32, Float64

from plastic_export.exact.byte_planes import Words

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes per word of the types that a guess can be rounded to."""

_EXACT_BITS = 53


@dataclass(frozen=True)
class Guess:
    """A guess ``D + U V`` as words of a storage type, by rows.

    Attributes:
        dtype: ``"F32"``, ``"F16"`` or ``"BF16"``.
        shape: ``(m, n)``.
        D: Shape ``(m, n)``; None for zero.
        U: Shape ``(m, r)``; None for no product.
        V: Shape ``(r, n)``.
    """

    dtype: str
    shape: tuple[int, int]
    D: Float32 | None
    U: Float32 | None
    V: Float32 | None

    def words(self, rows: slice) -> Words:
        """Return the words of some rows, flat: the same on every machine with IEEE arithmetic."""
        total: Float64 | Float32 = np.zeros(1) if self.D is None else self.D[rows]
        if self.U is not None and self.V is not None and self.V.size:
            total = total + exact_product(self.U[rows], self.V)
        with np.errstate(over="ignore"):
            return _rounded(total.astype(np.float32), self.dtype).reshape(-1)


def exact_product(U: Float32, V: Float32) -> Float64:
    """Multiply rounded factors to ``U V`` without a rounding of its own.

    Every entry of U is off by at most ``2^-b`` of the largest in its row, of V of the largest in
    its column, with ``b = (53 - ceil(log2 r)) // 2 - 1`` (19 for a rank of 8192).
    """
    bits = (_EXACT_BITS - math.ceil(math.log2(max(2, V.shape[0])))) // 2 - 1
    left, left_shift = _integers(U, 1, bits)
    right, right_shift = _integers(V, 0, bits)
    product: Float64 = np.ldexp(left @ right, left_shift + right_shift)
    return product


def _integers(A: Float32, axis: int, bits: int) -> tuple[Float64, NDArray[np.intc]]:
    """Write ``A ~ integers * 2^shift``: integers below ``2^bits``, a shift per row or column."""
    largest = np.abs(A).max(axis=axis, keepdims=True, initial=0.0)
    shift: NDArray[np.intc] = np.frexp(largest)[1] - bits
    return np.rint(np.ldexp(A.astype(np.float64), -shift)), shift


def _rounded(values: Float32, dtype: str) -> Words:
    """Return the nearest values of a storage type, ties to even."""
    if dtype == "F32":
        return values.view(np.uint32)
    if dtype == "F16":
        return values.astype(np.float16).view(np.uint16)
    words = values.view(np.uint32)
    half = np.uint32(0x7FFF) + (words >> np.uint32(16) & np.uint32(1))
    return (words + half >> np.uint32(16)).astype(np.uint16)
