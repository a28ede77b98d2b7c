"""The formula of each foreign form: what its codes and scales stand for.

Each is that of the tool's own code: the product of integer or small float and scale, exact in
float32, rounded once to the type of the result. Nothing is computed before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from plastic_export.model.foreign_numbers import float8, power_of_two, spread

_TYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


class UnfitError(ValueError):
    """A scale does not fit the weight beside which it lies."""


def stated_type(config: Mapping[str, Any]) -> mx.Dtype:
    """Return the type of a model's weights, bfloat16 where the configuration states none."""
    for settings in (config, config.get("text_config")):
        for key in ("dtype", "torch_dtype"):
            name = settings.get(key) if isinstance(settings, Mapping) else None
            if isinstance(name, str) and (dtype := _TYPES.get(name.removeprefix("torch."))):
                return dtype
    return mx.bfloat16


def scaled_float8(
    codes: mx.array, scale: mx.array, block: Sequence[int] | None, dtype: mx.Dtype
) -> mx.array:
    """Return E4M3 codes times their scales.

    Source: DeepSeek-V3, ``inference/kernel.py``, ``weight_dequant_kernel``.

    Args:
        codes: The weight, uint8.
        scale: One in all, one per row or one per block; uint8 for powers of two (E8M0).
        block: Height and width of a block, None where they are not stated.
        dtype: Type of the result.

    Raises:
        UnfitError: If the scale does not fit the weight.
    """
    return (float8(codes) * _spread(numbers(scale), codes.shape, block)).astype(dtype)


def numbers(scale: mx.array) -> mx.array:
    """Return scales in float32, those that are stored in bytes as the powers of two (E8M0)."""
    return power_of_two(scale) if scale.dtype == mx.uint8 else scale.astype(mx.float32)


def _spread(scale: mx.array, shape: Sequence[int], block: Sequence[int] | None) -> mx.array:
    scales = spread(scale, shape, block)
    if scales is None:
        raise UnfitError(f"its shape {tuple(shape)} and that of its scale {scale.shape} do not fit")
    return scales
