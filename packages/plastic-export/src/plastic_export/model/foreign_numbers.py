"""The numbers that other quantisers store: floats of 8 and 4 bits, powers of two, packed integers.

Sources: OCP 8-bit Floating Point Specification (OFP8) 1.0, section 5 (E4M3); OCP Microscaling
Formats (MX) Specification 1.0, sections 5.3.3 (E2M1) and 5.4.1 (E8M0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

WORD = 32  # bits in which integers are packed


def minifloats(exponent_bits: int, mantissa_bits: int) -> NDArray[np.float32]:
    """Return the value of every code ``sign, exponent, mantissa`` without infinities and NaNs.

    An exponent of zero marks the subnormal numbers. The bias is ``2**(exponent_bits - 1) - 1``.
    """
    codes = np.arange(2 ** (1 + exponent_bits + mantissa_bits))
    mantissa = codes % 2**mantissa_bits
    exponent = codes >> mantissa_bits & (2**exponent_bits - 1)
    digits = np.where(exponent > 0, 2**mantissa_bits + mantissa, mantissa)
    bias = 2 ** (exponent_bits - 1) - 1
    sizes = np.ldexp(digits.astype(np.float32), np.maximum(exponent, 1) - bias - mantissa_bits)
    signed: NDArray[np.float32] = np.where(codes >> exponent_bits + mantissa_bits, -sizes, sizes)
    return signed


def _e4m3() -> mx.array:
    values = minifloats(4, 3)
    values[[0x7F, 0xFF]] = np.nan  # the one code of each sign that is no number
    return mx.array(values)


def _e8m0() -> mx.array:
    powers = np.ldexp(np.float32(1), np.arange(255) - 127)
    return mx.array(np.append(powers, np.float32(np.nan)))


_E4M3, _E2M1, _E8M0 = _e4m3(), mx.array(minifloats(2, 1)), _e8m0()


def float8(codes: mx.array) -> mx.array:
    """Return the float32 values of E4M3 codes (uint8), in the same shape."""
    return _E4M3[codes]


def float4(codes: mx.array) -> mx.array:
    """Return the float32 values of E2M1 codes, two to a byte along the last axis, low one first."""
    pairs = mx.stack([codes & 15, codes >> 4], axis=-1)
    return _E2M1[pairs.reshape(*codes.shape[:-1], -1)]


def power_of_two(codes: mx.array) -> mx.array:
    """Return the float32 values of E8M0 codes (uint8), in the same shape."""
    return _E8M0[codes]


def integers(
    words: mx.array, bits: int, *, axis: int = -1, order: Sequence[int] | None = None
) -> mx.array:
    """Return the unsigned integers that are packed along an axis, lowest bits first.

    Args:
        words: Array of words of 32 bits, signed or not, ``n`` along the axis.
        bits: Width of an integer, 1 to 8. It may begin in one word and end in the next.
        axis: The axis.
        order: At which place of its word each integer lies, for widths that divide a word; None:
            one after the other.

    Returns:
        int32, ``n * 32 // bits`` along the axis.
    """
    words, axis = words.view(mx.uint32), axis % words.ndim
    if WORD % bits:
        codes = _crossing_integers(words, bits, axis)
    else:
        places = np.arange(WORD // bits) if order is None else np.array(order)
        offsets = mx.array((places * bits).astype(np.uint32))
        offsets = offsets.reshape(-1, *[1] * (words.ndim - 1 - axis))
        codes = mx.flatten(mx.expand_dims(words, axis + 1) >> offsets, axis, axis + 1)
    return mx.bitwise_and(codes, 2**bits - 1).astype(mx.int32)


def _crossing_integers(words: mx.array, bits: int, axis: int) -> mx.array:
    """Return words in whose lowest bits the integers lie, some of which end in the next word."""
    count = words.shape[axis]
    first, offset = np.divmod(np.arange(count * WORD // bits, dtype=np.uint32) * bits, WORD)
    missing = np.maximum(offset + bits, WORD) - WORD  # bits that lie in the next word

    def along(values: NDArray[np.uint32]) -> mx.array:
        return mx.array(values).reshape(-1, *[1] * (words.ndim - 1 - axis))

    low = mx.take(words, mx.array(first), axis=axis) >> along(offset)
    following = mx.take(words, mx.array(np.minimum(first + 1, count - 1)), axis=axis)
    high = following << along((bits - missing).astype(np.uint32))
    return mx.where(along(missing) > 0, low | high, low)


def spread_scale(scale: mx.array, shape: Sequence[int], block: Sequence[int]) -> mx.array | None:
    """Return a scale for every entry of a matrix, or of a stack of them.

    Args:
        scale: One scale in all, one per row or matrix, or one per block; its axes are the first
            ones of the matrix.
        shape: The shape of the matrix.
        block: Height and width of a block; the sides may cut the last ones.

    Returns:
        An array that broadcasts against the matrix; None if the two do not fit each other.
    """
    if scale.size == 1:
        return scale.reshape([1] * len(shape))
    if scale.ndim > len(shape):
        return None
    scale = scale.reshape(*scale.shape, *[1] * (len(shape) - scale.ndim))
    widths = [1] * (len(shape) - 2) + list(block)
    for axis, (size, width) in enumerate(zip(shape, widths, strict=True)):
        if scale.shape[axis] in (1, size):
            continue
        if scale.shape[axis] != math.ceil(size / width):
            return None
        scale = mx.repeat(scale, width, axis=axis)[(slice(None),) * axis + (slice(size),)]
    return scale
