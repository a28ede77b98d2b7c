"""Factors in 2 to 8 bits, packed as MLX packs its quantised weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from plastic_core.factors.factors import Factors
from plastic_core.linalg import Float32, Matrix, as_matrix, as_vector

BITS = (2, 3, 4, 5, 6, 8)
"""Bits per code that MLX packs."""
GROUP_SIZES = (32, 64, 128)
"""Neighbouring entries of a row that may share a scale."""


def best_group(side: int, *, most: int = 128) -> int | None:
    """Return the largest group size of at most ``most`` entries that divides a side, or None.

    Examples:
        >>> best_group(4096), best_group(4096, most=64), best_group(100)
        (128, 64, None)
    """
    return next((g for g in reversed(GROUP_SIZES) if g <= most and side % g == 0), None)


class PackedMatrix(NamedTuple):
    """A matrix in MLX's affine format: ``scales * code + biases``, one of each per group of a row.

    Attributes:
        weight: The codes, packed, uint32.
        scales: Float32 of shape ``(rows, groups)``.
        biases: Float32 of shape ``(rows, groups)``.
        columns: Columns of the matrix itself; the packed rows are padded to whole groups.

    Examples:
        >>> q = quantize_factors(np.eye(64), np.ones(64), np.eye(64), bits=4)
        >>> q.Vh.weight.shape, q.Vh.scales.shape, q.Vh.nbytes
        ((64, 8), (64, 1), 2560)
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and biases, padding counted."""
        return self.weight.nbytes + self.scales.nbytes + self.biases.nbytes


@dataclass(frozen=True)
class QuantizedFactors:
    """The product ``U @ diag(S) @ Vh`` with U and Vh in a few bits per entry.

    Attributes:
        Ut: U transposed, ``(r, m)``: groups run along the outputs, whatever the rank.
        S: Shape ``(r,)``, float32, exact.
        Vh: Shape ``(r, n)``.
        bits: Bits per code.
        group_size: Entries that share a scale and a bias.

    Examples:
        >>> q = quantize_factors(np.ones((64, 2)), np.ones(2), np.ones((2, 32)), bits=8)
        >>> q.shape, q.rank, q.nbytes
        ((64, 32), 2, 296)
    """

    Ut: PackedMatrix
    S: mx.array
    Vh: PackedMatrix
    bits: int
    group_size: int

    @property
    def rank(self) -> int:
        """The number of components."""
        return self.S.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(m, n)`` of the product."""
        return self.Ut.columns, self.Vh.columns

    @property
    def nbytes(self) -> int:
        """Bytes of everything that has to be stored: codes, scales, biases, padding, S."""
        return self.Ut.nbytes + self.S.nbytes + self.Vh.nbytes


def quantize_factors(
    U: Matrix, S: Matrix, Vh: Matrix, bits: int = 8, *, group_size: int = 64
) -> QuantizedFactors:
    """Round U and Vh to ``bits`` bits per entry; S stays float32.

    The levels of a group divide the interval between its least and its largest entry evenly, so
    an entry moves by at most half of ``step = (largest - least) / (2**bits - 1)``. (``mx.quantize``
    itself keeps zero exact and pays with clipping: up to a whole step.)

    Args:
        U: Matrix of shape ``(m, r)``, NumPy or MLX, any floating dtype.
        S: Vector of shape ``(r,)``.
        Vh: Matrix of shape ``(r, n)``.
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: 32, 64 or 128 entries along ``m`` and ``n``. Neither these nor the rank need be
            multiples of it.

    Returns:
        Packed factors that ``mx.dequantize`` and ``mx.quantized_matmul`` understand.

    Raises:
        TypeError: If an argument does not hold floating-point numbers.
        ValueError: If an entry is NaN or infinite (``mx.quantize`` would hide it), a matrix is
            empty, the shapes do not fit together, or ``bits`` or ``group_size`` is not offered.

    Examples:
        >>> q = quantize_factors(np.ones((64, 2)), np.ones(2), np.ones((2, 64)), bits=2)
        >>> dequantize_factors(q).Vh.tolist() == np.ones((2, 64)).tolist()
        True
    """
    if bits not in BITS:
        raise ValueError(f"`bits` must be one of {BITS}, got {bits}.")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"`group_size` must be one of {GROUP_SIZES}, got {group_size}.")
    U, S, Vh = as_matrix(U, "U"), as_vector(S, "S"), as_matrix(Vh, "Vh")
    (m, n), r = (U.shape[0], Vh.shape[1]), S.shape[0]
    if U.shape != (m, r) or Vh.shape != (r, n) or m * n == 0:
        raise ValueError(
            "`U`, `S` and `Vh` must have shapes (m, r), (r,) and (r, n) with m, n at least 1, "
            f"got {U.shape}, {S.shape} and {Vh.shape}."
        )
    Ut_packed, Vh_packed = _pack(U.T, bits, group_size), _pack(Vh, bits, group_size)
    return QuantizedFactors(Ut_packed, mx.array(S), Vh_packed, bits, group_size)


def dequantize_factors(q: QuantizedFactors) -> Factors:
    """Return the numbers that quantised factors stand for.

    Args:
        q: What `quantize_factors` returned.

    Returns:
        Float32 factors of shapes ``(m, r)``, ``(r,)`` and ``(r, n)``. U and Vh are orthonormal
        only up to the rounding.

    Examples:
        >>> q = quantize_factors(np.eye(32), np.ones(32), np.eye(32), group_size=32)
        >>> dequantize_factors(q).dense().shape
        (32, 32)
    """
    U, Vh = (_unpack(packed, q.bits, q.group_size) for packed in (q.Ut, q.Vh))
    return Factors(U.T, q.S, Vh)


def _pack(M: Float32, bits: int, group_size: int) -> PackedMatrix:
    rows, columns = M.shape
    # The last entry again, not zero: padding must not widen the interval of its group.
    padded = np.pad(M, ((0, 0), (0, -columns % group_size)), mode="edge")
    groups = padded.reshape(rows, padded.shape[1] // group_size, group_size)
    least = groups.min(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):
        step = (groups.max(axis=-1, keepdims=True) - least) / np.float32(2**bits - 1)
    if not np.isfinite(step).all():
        raise ValueError("The range of a group overflows float32. Scale the factors down first.")
    codes = np.rint((groups - least) / np.where(step > 0, step, np.float32(1)))
    # Whole numbers that fill their range are packed without loss: code = scale * packed + bias.
    weight, scales, biases = mx.quantize(
        mx.array(codes.reshape(padded.shape)), group_size, bits, stream=mx.cpu
    )
    step, least = step[..., 0], least[..., 0]
    return PackedMatrix(
        weight,
        mx.array(step * np.asarray(scales)),
        mx.array(step * np.asarray(biases) + least),
        columns,
    )


def _unpack(packed: PackedMatrix, bits: int, group_size: int) -> mx.array:
    weight, scales, biases, columns = packed
    if weight.shape[0] == 0:  # MLX cannot infer the shape of no rows
        return mx.zeros((0, columns))
    return mx.dequantize(weight, scales, biases, group_size, bits, stream=mx.cpu)[:, :columns]
