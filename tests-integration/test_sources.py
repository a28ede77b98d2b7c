"""The zoo's further forms of sources: loaded here they are what stock mlx-lm makes of them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.utils import load_model as stock_load
from plastic_export import load_model
from zoo.building import build_checkpoint
from zoo.dense import Weights
from zoo.sources import SOURCES

FORMS = [(model_type, form) for model_type, forms in SOURCES.items() for form in forms]
ROUNDED = {"awq": 2.0**-10}
"""Where mlx-lm rounds what the formula of the tool does not: offsets to float16."""


def plain_weights(model: nn.Module) -> Weights:
    """Every parameter, packed ones in float32."""
    weights: Weights = {}
    for path, module in model.named_modules():
        own = {name: value for name, value in module.items() if isinstance(value, mx.array)}
        if hasattr(module, "bits"):
            scales, biases = own.pop("scales"), own.pop("biases", None)
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            packing = (module.group_size, module.bits, module.mode)
            packed = own["weight"]
            own["weight"] = mx.dequantize(packed, scales, biases, *packing, dtype=mx.float32)
        weights |= {f"{path}.{name}": value for name, value in own.items()}
    return weights


@pytest.mark.parametrize(("model_type", "form"), FORMS)
def test_a_form_is_loaded_as_stock_mlx_lm_loads_it(tmp_path, model_type: str, form: str) -> None:
    folder = build_checkpoint(tmp_path / "SRC", model_type, form)
    stock, _ = stock_load(folder, lazy=True)
    expected, given = plain_weights(stock), plain_weights(load_model(folder))
    assert given.keys() == expected.keys()
    for name, weight in expected.items():
        most = ROUNDED.get(form, 0.0) * mx.abs(weight).max().item()
        assert mx.abs(given[name] - weight).max().item() <= most, name
        assert form in ROUNDED or given[name].dtype == weight.dtype, name
