"""Codes of MLX in blocks of GGUF: the package ``gguf`` reads the very numbers of MLX."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from plastic_export.checkpoint.packing import Packing
from plastic_export.gguf.codes import block_type, same_code_rows
from plastic_export.gguf.encoding import decoded_rows
from plastic_export.merging.dense_layers import dense_form


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_the_numbers_stay_the_same(bits: int, group_size: int) -> None:
    linear = nn.Linear(256, 6)
    linear.weight = mx.random.normal((6, 256), key=mx.random.key(bits)).astype(mx.float16)
    layer = linear.to_quantized(group_size, bits)
    form = dense_form(layer)
    assert form is not None
    packing = Packing(bits, group_size, "affine")
    assert form.packing == packing
    type = block_type(packing)
    assert type is not None
    rows = same_code_rows(layer, packing)
    np.testing.assert_allclose(decoded_rows(rows, type), form.values(), atol=1e-6)
