"""Layers with a correction of low rank as the dense layers that they stand for."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from plastic_core.layer import dense_weight, linear_from
from plastic_core.linalg import Float32, as_matrix


def merge_corrections(model: nn.Module) -> None:
    """Replace every layer with a correction by a dense one in float32: one product, not three.

    Args:
        model: Changed in place. Its layers may be those of ``plastic_model.py``, packed or not,
            and those of an adapter of mlx-lm.
    """
    from mlx_lm.tuner.lora import LoRALinear

    from plastic_export.model.plastic_model import CorrectedLinear

    merge = {CorrectedLinear: _corrected, LoRALinear: _adapted}
    modules = model.named_modules()  # type: ignore[no-untyped-call]
    merged = [(path, merge[type(m)](m)) for path, m in modules if type(m) in merge]
    model.update_modules(tree_unflatten(merged))


def _corrected(layer: Any) -> nn.Linear:
    weight = _rows(layer.u).T @ _dense(layer.v)
    if "base" not in layer:
        return linear_from(mx.array(weight), layer.get("bias"))
    weight += _dense(layer.base)
    return linear_from(mx.array(weight), layer.base.get("bias"))


def _adapted(layer: Any) -> nn.Linear:
    a, b = as_matrix(layer.lora_a, "lora_a"), as_matrix(layer.lora_b, "lora_b")
    weight = _dense(layer.linear) + np.float32(layer.scale) * (a @ b).T
    return linear_from(mx.array(weight), layer.linear.get("bias"))


def _dense(linear: nn.Linear | nn.QuantizedLinear) -> Float32:
    return as_matrix(dense_weight(linear), "weight")


def _rows(layer: Any) -> Float32:
    """Return the weight of the output directions, shape (r, out)."""
    if "scales" not in layer:
        return as_matrix(layer.weight, "weight")
    dense = mx.dequantize(
        layer.weight, layer.scales, layer.get("biases"), layer.group_size, layer.bits, layer.mode
    )
    return as_matrix(dense, "weight")
