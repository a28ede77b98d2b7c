"""The formula of each foreign form: the plain matrix that its codes and scales stand for.

Each is that of the tool's own code: the product of small number and scale, exact in float32 (for
float32 scales rounded there), then rounded once to the type of the result. Nothing is computed
before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from plastic_export.model.foreign_numbers import (
    WORD,
    float4,
    float8,
    integers,
    power_of_two,
    spread_scale,
)

Blocks = Sequence[tuple[int, int]]
"""Heights and widths of the blocks that share a scale, the first that fits being meant."""

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in its word the i-th of eight integers lies


class UnfitError(ValueError):
    """The tensors of a weight do not fit each other, or are of a kind that is not read."""


def from_float8(codes: mx.array, scale: mx.array, blocks: Blocks, dtype: mx.Dtype) -> mx.array:
    """Return E4M3 codes times their scales.

    Source: DeepSeek-V3, ``inference/kernel.py``, ``weight_dequant_kernel``.

    Args:
        codes: Shape ``(..., out, in)``, uint8.
        scale: One in all, one per row or one per block; uint8 for powers of two (E8M0).
        blocks: The blocks that are stated, 128 x 128 where none is; 32 of a row are always taken.
        dtype: Type of the result.

    Raises:
        UnfitError: If the scale does not fit the weight.
    """
    usual = [*(blocks or [(128, 128)]), (1, 32)]
    return (float8(codes) * _spread(_numbers(scale), codes.shape, usual)).astype(dtype)


def from_float4(codes: mx.array, scale: mx.array, width: int, dtype: mx.Dtype) -> mx.array:
    """Return E2M1 codes times their scales.

    Sources: compressed-tensors, ``quantization/lifecycle/forward_helpers.py``, ``_dequantize``;
    NVIDIA Model Optimizer, ``qtensor/nvfp4_tensor.py``, ``dequantize``.

    Args:
        codes: Shape ``(..., out, in / 2)``, uint8.
        scale: Shape ``(..., out, in / width)``, float32, or uint8 for powers of two (E8M0).
        width: How many entries of a row share a scale.
        dtype: Type of the result.

    Raises:
        UnfitError: If the scale does not fit the weight.
    """
    values = float4(codes)
    return (values * _spread(_numbers(scale), values.shape, [(1, width)])).astype(dtype)


def from_integers(
    values: mx.array,
    scale: mx.array,
    zero: mx.array | None,
    groups: mx.array | None,
    blocks: Blocks,
    dtype: mx.Dtype,
) -> mx.array:
    """Return ``(value - zero) * scale``.

    Source: compressed-tensors, ``quantization/lifecycle/forward_helpers.py``, ``_dequantize``.

    Args:
        values: Shape ``(out, in)``, signed integers.
        scale: One in all, one per row, one per group of a row or one per block.
        zero: Signed integers shaped like ``scale``; None for 0.
        groups: The group of each column; None, or -1 for all, where they lie in order.
        blocks: The blocks that are stated; equal parts of a row are always taken.
        dtype: Type of the result.

    Raises:
        UnfitError: If the scale does not fit the weight.
    """
    columns = values.shape[-1]

    def each(array: mx.array) -> mx.array:
        parts = array.shape[1] if array.ndim == 2 else 1
        if groups is None or parts == 1:
            equal = [(1, columns // parts)] if columns % parts == 0 else []
            return _spread(array.astype(mx.float32), values.shape, [*blocks, *equal])
        in_order = mx.arange(columns) // math.ceil(columns / parts)
        return _of_group(array, mx.where(groups == -1, in_order, groups), axis=1)

    centred = values.astype(mx.float32)
    if zero is not None:
        centred = centred - each(zero)
    return (centred * each(scale)).astype(dtype)


def unpacked_integers(words: mx.array, bits: int, columns: int) -> mx.array:
    """Return signed integers, packed along the last axis with ``2**(bits - 1)`` added to each.

    Source: compressed-tensors, ``compressors/pack_quantized/helpers.py``, ``unpack_from_int32``.

    Args:
        words: Shape ``(..., columns * bits / 32)``, rounded up.
        bits: Width of an integer.
        columns: How many a row holds.
    """
    return mx.subtract(integers(words, bits)[..., :columns], 2 ** (bits - 1))


def from_gptq(
    words: mx.array,
    zeros: mx.array,
    scales: mx.array,
    groups: mx.array | None,
    offset: int,
    dtype: mx.Dtype,
) -> mx.array:
    """Return ``scale * (integer - zero)`` of a GPTQ layer, transposed to MLX's ``(out, in)``.

    Source: AutoGPTQ, ``nn_modules/qlinear/qlinear_cuda.py``, ``forward``.

    Args:
        words: Shape ``(in * bits / 32, out)``.
        zeros: Shape ``(groups, out * bits / 32)``.
        scales: Shape ``(groups, out)``.
        groups: The group of each input; None where they lie in order.
        offset: What is to be added to the stored zeros: 1 in version 1 of the format.
        dtype: Type of the result.

    Raises:
        UnfitError: If the tensors do not fit each other.
    """
    count, outputs = scales.shape
    bits, rest = divmod(zeros.shape[-1] * WORD, outputs)
    inputs = words.shape[0] * WORD // max(bits, 1)
    shapes = (zeros.shape[0], words.shape[1], inputs if groups is None else groups.size)
    in_order = groups is not None or inputs % count == 0
    if rest or bits not in (2, 3, 4, 8) or shapes != (count, outputs, inputs) or not in_order:
        reason = f"qweight {words.shape}, qzeros {zeros.shape} and scales {scales.shape} do not fit"
        raise UnfitError(reason)
    if groups is None:
        groups = mx.arange(inputs) // (inputs // count)
    zero = _of_group(integers(zeros, bits) + offset, groups, axis=0)
    scale = _of_group(scales, groups, axis=0)
    return ((integers(words, bits, axis=0) - zero) * scale).T.astype(dtype)


def from_awq(
    words: mx.array, zeros: mx.array | None, scales: mx.array, dtype: mx.Dtype
) -> mx.array:
    """Return ``(integer - zero) * scale`` of an AWQ layer, transposed to MLX's ``(out, in)``.

    Source: AutoAWQ, ``utils/packing_utils.py``, ``dequantize_gemm``.

    Args:
        words: Shape ``(in, out / 8)``, 4 bits per integer.
        zeros: Shape ``(groups, out / 8)``; None for 8.
        scales: Shape ``(groups, out)``.
        dtype: Type of the result.

    Raises:
        UnfitError: If the tensors do not fit each other.
    """
    count, outputs = scales.shape
    inputs = words.shape[0]
    fits = words.shape[1] * 8 == outputs and inputs % count == 0
    if not fits or (zeros is not None and zeros.shape != (count, outputs // 8)):
        reason = f"qweight {words.shape} and scales {scales.shape} do not fit 4 bits"
        raise UnfitError(reason)
    q = integers(words, 4, order=_AWQ_ORDER)
    scale = mx.repeat(scales.astype(mx.float32), inputs // count, axis=0)
    if zeros is None:
        return mx.transpose((q - 8) * scale).astype(dtype)
    zero = mx.repeat(integers(zeros, 4, order=_AWQ_ORDER), inputs // count, axis=0)
    return mx.transpose((q - zero) * scale).astype(dtype)


def _of_group(array: mx.array, groups: mx.array, *, axis: int) -> mx.array:
    """Return the row or column of each group in float32, NaN for a group that there is not."""
    count = array.shape[axis]
    edge = (1, array.shape[1]) if axis == 0 else (array.shape[0], 1)
    padded = mx.concatenate([array.astype(mx.float32), mx.full(edge, mx.nan)], axis=axis)
    return mx.take(padded, mx.where((groups < 0) | (groups >= count), count, groups), axis=axis)


def _numbers(scale: mx.array) -> mx.array:
    """Return scales in float32, those that are stored in bytes as the powers of two (E8M0)."""
    return power_of_two(scale) if scale.dtype == mx.uint8 else scale.astype(mx.float32)


def _spread(scale: mx.array, shape: Sequence[int], blocks: Blocks) -> mx.array:
    for block in blocks or [(1, 1)]:
        scales = spread_scale(scale, shape, block)
        if scales is not None:
            return scales
    reason = f"its shape {tuple(shape)} and that of its scale {scale.shape} do not fit each other"
    raise UnfitError(reason)
