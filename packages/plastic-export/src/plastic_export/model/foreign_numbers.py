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


def integers(words: mx.array, bits: int) -> mx.array:
    """Return the unsigned integers that are packed along the last axis, lowest bits first.

    Args:
        words: Shape ``(..., n)``, of 32 bits each, signed or not.
        bits: Width of an integer, 1 to 8. It may begin in one word and end in the next.

    Returns:
        Shape ``(..., n * 32 // bits)``, int32.
    """
    words = words.view(mx.uint32)
    first, offset = np.divmod(np.arange(words.shape[-1] * WORD // bits) * bits, WORD)
    codes = words[..., mx.array(first)] >> mx.array(offset.astype(np.uint32))
    missing = np.maximum(offset + bits - WORD, 0)  # bits that lie in the next word
    if missing.any():
        following = words[..., mx.array(np.minimum(first + 1, words.shape[-1] - 1))]
        high = following << mx.array((bits - missing).astype(np.uint32))
        codes = mx.where(mx.array(missing > 0), codes | high, codes)
    return mx.bitwise_and(codes, 2**bits - 1).astype(mx.int32)


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
