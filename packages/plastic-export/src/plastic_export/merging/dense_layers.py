"""Layers that are packed, factored or corrected, as the dense matrix that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import dtype_name

from plastic_export.checkpoint.packing import Packing, unpacked
from plastic_export.checkpoint.tensors import FLOATS
from plastic_export.folder.shards import as_float32

Values = NDArray[np.float32]


@dataclass(frozen=True)
class DenseForm:
    """The dense matrix that a layer stands for.

    Attributes:
        shape: Its shape, (out, in) or (experts, out, in).
        dtype: The type of what is stored of it: ``"F32"``, ``"F16"`` or ``"BF16"``.
        values: Computes it in float32.
        bias: The bias of the layer; None where it has none.
        packing: How it is packed where it is nothing but codes; None otherwise.
    """

    shape: tuple[int, ...]
    dtype: str
    values: Callable[[], Values]
    bias: mx.array | None
    packing: Packing | None = None


def dense_form(layer: nn.Module) -> DenseForm | None:
    """Return the matrix that a layer stands for; None where its arrays are plain.

    Args:
        layer: A layer of a model as `plastic_export.model.load` loads it.

    Examples:
        >>> layer = nn.Linear(64, 3).to_quantized(group_size=32, bits=4)
        >>> form = dense_form(layer)
        >>> form.shape, form.dtype, form.packing.bits, form.values().dtype.name
        ((3, 64), 'F32', 4, 'float32')
    """
    from plastic_export.model.plastic_model import CorrectedLinear, FactorLinear

    if isinstance(layer, FactorLinear):
        return _factored(layer)
    if isinstance(layer, CorrectedLinear):
        return _corrected(layer)
    return _packed(layer) if "scales" in layer and hasattr(layer, "bits") else None


def layer_values(layer: Mapping[str, Any] | nn.Module) -> Values:
    """Return the weight of a plain or packed layer in float32."""
    form = _packed(layer) if "scales" in layer else None
    return as_float32(layer["weight"]) if form is None else form.values()


def _packed(layer: Any) -> DenseForm:
    packing = Packing(layer.bits, layer.group_size, getattr(layer, "mode", "affine"))
    biases = layer.get("biases")
    *rows, words = layer.weight.shape

    def values() -> Values:
        return unpacked(layer.weight, layer.scales, biases, packing)

    shape = (*rows, words * 32 // packing.bits)
    return DenseForm(shape, _stored_type(layer.scales), values, layer.get("bias"), packing)


def _factored(layer: Any) -> DenseForm:
    u, v = layer.u, layer.v
    rows, columns = _sides(u)[0], _sides(v)[1]

    def values() -> Values:
        return layer_values(u) @ layer_values(v)

    return DenseForm((rows, columns), _type_of(u), values, u.get("bias"))


def _corrected(layer: Any) -> DenseForm:
    u, v = layer.u, layer.v
    base = layer.get("base")
    shape = (_sides(u)[1], _sides(v)[1])

    def values() -> Values:
        product = layer_values(u).T @ layer_values(v)
        return product if base is None else layer_values(base) + product

    bias = layer.get("bias") if base is None else base.get("bias")
    return DenseForm(shape, _type_of(u if base is None else base), values, bias)


def _sides(layer: Any) -> tuple[int, int]:
    rows, columns = layer.weight.shape
    return rows, columns * 32 // layer.bits if "scales" in layer else columns


def _type_of(layer: Any) -> str:
    return _stored_type(layer.scales if "scales" in layer else layer.weight)


def _stored_type(array: mx.array) -> str:
    """The type of an array; of scales that are codes themselves, what mlx-lm computes in."""
    name = dtype_name(array)
    return name if name in FLOATS else "BF16"
