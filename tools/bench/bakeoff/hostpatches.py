"""The functions that mlx-lm's quantisers spend their time on, in NumPy on the CPU.

Products of linear layers, and of embeddings as the head, forwards and backwards, with gradients of
weights, scales and biases; the sums of GPTQ's Hessians; the one ``einsum`` of AWQ; the divergences
of DWQ and of dynamic quantisation. The reference BLAS of MLX and ``mx.quantized_matmul`` take hours
for these.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any, cast
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.quant import dwq, dynamic_quant, gptq
from plastic_core import linalg
from plastic_core.linalg import on_cpu
from plastic_export.model import divergences, log_softmax, use_numpy_functions

Quantized = nn.QuantizedLinear | nn.QuantizedEmbedding


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Without progress bars; with products in NumPy if MLX computes on the CPU."""
    replaced = [
        (nn.Linear, "__call__", _linear),
        (nn.QuantizedLinear, "__call__", _quantized),
        (nn.Embedding, "as_linear", _linear),
        (nn.QuantizedEmbedding, "as_linear", _quantized),
        (nn.QuantizedEmbedding, "__call__", _looked_up),
        (mx, "einsum", _einsum),
        (dwq, "kl_div_loss", divergences_of),
        (dynamic_quant, "kl_div_loss", divergences_of),
        (gptq, "Catcher", _Catcher),
    ]
    with use_numpy_functions(), contextlib.ExitStack() as stack:
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(redirect(io.StringIO()))
        for owner, name, ours in replaced if on_cpu() else ():
            stack.enter_context(patch.object(owner, name, ours))
        yield


def divergences_of(logits: mx.array, targets: mx.array) -> mx.array:
    """KL(targets || logits) at every position, from the logits of both."""
    return divergences(logits, log_softmax(targets))


def _product(A: mx.array, B: mx.array) -> mx.array:
    """``A @ B`` in float32, differentiable in both."""
    return cast(mx.array, _host_product(A, B))


@mx.custom_function
def _host_product(A: mx.array, B: mx.array) -> mx.array:
    left, right = (linalg.to_numpy(M.astype(mx.float32)) for M in (A, B))
    return mx.array(left @ right)


@_host_product.vjp
def _backward(
    primals: tuple[mx.array, mx.array], G: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    A, B = primals
    return _product(G, B.swapaxes(-1, -2)), _product(A.swapaxes(-1, -2), G)


def _times(x: mx.array, W: mx.array, layer: nn.Module) -> mx.array:
    y = _product(x.reshape(-1, x.shape[-1]), W.T).reshape(*x.shape[:-1], len(W))
    return y + layer.bias if "bias" in layer else y


def _linear(layer: nn.Linear | nn.Embedding, x: mx.array) -> mx.array:
    return _times(x, layer.weight, layer)


def _quantized(layer: Quantized, x: mx.array) -> mx.array:
    return _times(x, _widened(layer, slice(None)), layer)


def _looked_up(layer: nn.QuantizedEmbedding, x: mx.array) -> mx.array:
    return _widened(layer, x)


def _widened(layer: Quantized, rows: mx.array | slice) -> mx.array:
    """Rows of the weight in float32, differentiable in scales and offsets."""
    scales, biases = (layer[name][rows].astype(mx.float32) for name in ("scales", "biases"))
    ones, zeros = mx.ones_like(scales), mx.zeros_like(scales)
    codes = mx.dequantize(layer.weight[rows], ones, zeros, layer.group_size, layer.bits)
    W: mx.array = codes.reshape(*scales.shape, -1) * scales[..., None] + biases[..., None]
    return W.reshape(codes.shape)


def _einsum(subscripts: str, x: mx.array, w: mx.array) -> mx.array:
    """The one that AWQ's search for clipping needs."""
    assert subscripts == "bdg,odg->bod"
    return _product(x.swapaxes(0, 1), w.transpose(1, 2, 0)).transpose(1, 2, 0)


class _Catcher(gptq.Catcher):  # type: ignore[misc]
    H: mx.array
    module: Callable[..., mx.array]

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        rows = x.flatten(0, -2)
        self.H = self.H + _product(rows.T, rows)
        return self.module(x, *args, **kwargs)
