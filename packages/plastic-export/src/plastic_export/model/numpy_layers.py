"""Run the products of linear layers in NumPy where MLX computes on the CPU.

On Linux mlx's CPU wheel links reference BLAS, about 40 times slower than the OpenBLAS in NumPy's
wheel. Evaluation and calibration need not pay for that.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from plastic_core.layer import dense_weight, linear_from
from plastic_core.linalg import on_cpu
from plastic_runtime.measure import numpy_product

REPLACED = (nn.Linear, nn.QuantizedLinear)  # and no subclass: it may do more
EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)


class NumpyLinear(nn.Linear):
    """A linear layer in float32 whose product runs in NumPy; its weight has no gradient.

    Args:
        linear: The layer; its weight of shape ``(out, in)`` is shared, not copied, if float32, and
            dequantised once if packed.
    """

    def __init__(self, linear: nn.Linear | nn.QuantizedLinear) -> None:
        nn.Module.__init__(self)  # type: ignore[no-untyped-call]  # draw no random weight
        self.weight = dense_weight(linear).astype(mx.float32)
        if "bias" in linear:
            self.bias = linear.bias.astype(mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``(..., in)`` to ``(..., out)``, float32."""
        return numpy_product(x.astype(mx.float32), self)


class NumpyEmbedding(nn.Embedding):
    """An embedding in float32 whose product, as the output layer of tied weights, runs in NumPy.

    Args:
        embedding: The layer; its weight of shape ``(tokens, out)`` is shared, not copied, if
            float32, and dequantised once if packed.
    """

    def __init__(self, embedding: nn.Embedding | nn.QuantizedEmbedding) -> None:
        nn.Module.__init__(self)  # type: ignore[no-untyped-call]  # draw no random weight
        is_packed = isinstance(embedding, nn.QuantizedEmbedding)
        rows = embedding(mx.arange(len(embedding.weight))) if is_packed else embedding.weight
        self.weight = rows.astype(mx.float32)

    def as_linear(self, x: mx.array) -> mx.array:
        """Map ``(..., out)`` to ``(..., tokens)``, float32."""
        return numpy_product(x.astype(mx.float32), linear_from(self.weight, None))


def use_numpy_products(model: nn.Module) -> None:
    """Replace linear layers and embeddings, quantised or not, if the default device is the CPU."""
    if not on_cpu():
        return
    modules = model.named_modules()  # type: ignore[no-untyped-call]
    linears = [(path, NumpyLinear(m)) for path, m in modules if type(m) in REPLACED]
    embeddings = [(path, NumpyEmbedding(m)) for path, m in modules if type(m) in EMBEDDINGS]
    model.update_modules(tree_unflatten([*linears, *embeddings]))
