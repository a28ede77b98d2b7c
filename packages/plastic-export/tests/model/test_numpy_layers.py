"""Layers in NumPy against the layers of MLX that they replace."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from plastic_core.linalg import on_cpu
from plastic_export.model.numpy_layers import use_numpy_products

pytestmark = pytest.mark.skipif(not on_cpu(), reason="on a GPU every layer stays in MLX")


@pytest.mark.parametrize("bits", [None, 4])
def test_an_embedding_is_the_same_layer_looked_up_and_as_output(bits: int | None) -> None:
    model = nn.Sequential(nn.Embedding(30, 64))
    model.layers[0].weight = mx.random.normal((30, 64), key=mx.random.key(0))
    if bits is not None:
        nn.quantize(model, 64, bits)
    own = model.layers[0]
    use_numpy_products(model)
    host = model.layers[0]
    assert host is not own
    tokens = mx.array([[3, 0, 29]])
    np.testing.assert_array_equal(np.asarray(host(tokens)), np.asarray(own(tokens)))
    x = mx.random.normal((2, 3, 64), key=mx.random.key(1))
    atol = 64 * float(np.finfo(np.float32).eps) * float(mx.abs(x).max() * mx.abs(host.weight).max())
    logits = np.asarray(host.as_linear(x))
    np.testing.assert_allclose(logits, np.asarray(own.as_linear(x)), rtol=0, atol=4 * atol)
