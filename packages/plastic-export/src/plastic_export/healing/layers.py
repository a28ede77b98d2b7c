"""Layers in float32 whose scales, biases and factors can be trained, their products in NumPy.

They stand in for MLX's own where MLX computes on the CPU, under the same names of parameters.
"""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg
from plastic_core.layer import Module


@mx.custom_function
def times_transposed(x: mx.array, W: mx.array) -> mx.array:
    """Multiply ``x W^T`` in NumPy, differentiable in both: ``(..., in)`` and ``(out, in)``."""
    return _shaped(_rows(x) @ _rows(W).T, (*x.shape[:-1], len(W)))


@times_transposed.vjp
def _backward(primals: Any, gradient: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    x, W = primals
    G = _rows(gradient)
    return _shaped(G @ _rows(W), x.shape), _shaped(G.T @ _rows(x), W.shape)


class PackedWeight(Module):
    """A weight ``scales * codes + biases``, group by group of neighbouring inputs.

    Args:
        layer: MLX's layer; its codes are unpacked once, one byte each.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.codes = _codes(layer)
        self.scales = layer.scales.astype(mx.float32)
        self.biases = layer.biases.astype(mx.float32)

    def rows(self, index: mx.array | slice = slice(None)) -> mx.array:
        """These rows of the weight, shape ``(..., in)``, differentiable in scales and biases."""
        values = self.codes[index] * self.scales[index][..., None]
        return cast(mx.array, (values + self.biases[index][..., None]).flatten(-2))


class PackedLinear(PackedWeight):
    """Stands in for ``nn.QuantizedLinear``."""

    def __init__(self, layer: nn.QuantizedLinear) -> None:
        super().__init__(layer)
        if "bias" in layer:
            self.bias = layer.bias.astype(mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``(..., in)`` to ``(..., out)``."""
        return _plus_bias(times_transposed(x, self.rows()), self)


class PackedEmbedding(PackedWeight):
    """Stands in for ``nn.QuantizedEmbedding``."""

    def __call__(self, ids: mx.array) -> mx.array:
        """Map ids of any shape to ``(..., size)``."""
        return self.rows(ids)

    def as_linear(self, x: mx.array) -> mx.array:
        """Map ``(..., size)`` to ``(..., vocabulary)``."""
        return cast(mx.array, times_transposed(x, self.rows()))


class DenseLinear(Module):
    """Stands in for an ``nn.Linear`` whose weight is trained."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight
        if "bias" in layer:
            self.bias = layer.bias

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``(..., in)`` to ``(..., out)``."""
        return _plus_bias(times_transposed(x, self.weight), self)


class PackedRows(PackedWeight):
    """Stands in for the packed output directions ``(r, out)`` of a correction."""

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``(..., r)`` to ``(..., out)``."""
        return cast(mx.array, times_transposed(x, self.rows().T))


class DenseRows(Module):
    """Stands in for the output directions ``(r, out)`` of a correction."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight = layer.weight

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``(..., r)`` to ``(..., out)``."""
        return cast(mx.array, times_transposed(x, self.weight.T))


class AdaptedLinear(Module):
    """Stands in for mlx-lm's ``LoRALinear``, around the stand-in of its linear layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.linear, self.scale = layer.linear, layer.scale
        self.lora_a, self.lora_b = layer.lora_a, layer.lora_b

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``(..., in)`` to ``(..., out)``."""
        correction = times_transposed(times_transposed(x, self.lora_a.T), self.lora_b.T)
        return cast(mx.array, self.linear(x) + self.scale * correction)


def _codes(layer: Any) -> mx.array:
    """Shape ``(out, groups, group size)``, uint8."""
    ones, zeros = mx.ones(layer.scales.shape), mx.zeros(layer.scales.shape)
    size, bits = layer.group_size, layer.bits
    codes = mx.dequantize(layer.weight, ones, zeros, group_size=size, bits=bits)
    return codes.astype(mx.uint8).reshape(*layer.scales.shape, size)


def _plus_bias(y: Any, layer: nn.Module) -> mx.array:
    return cast(mx.array, y + layer.bias if "bias" in layer else y)


def _rows(x: mx.array) -> NDArray[np.float32]:
    rows = linalg.to_numpy(x.astype(mx.float32))
    return cast(NDArray[np.float32], rows.reshape(-1, x.shape[-1]))


def _shaped(values: NDArray[np.float32], shape: tuple[int, ...]) -> mx.array:
    return mx.array(values).reshape(shape)
