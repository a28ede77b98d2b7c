"""``export`` into folders, and what is refused in one line before anything is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from plastic_core.files import FormatError
from plastic_export import export, load_model
from plastic_export.compression.by_rank import compress
from plastic_export.shipping.table import TARGETS

SAME_TYPES = {"BF16": 21}


def arrays(folder: Path) -> dict[str, mx.array]:
    loaded = mx.load(str(folder / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("to", ["mlx", "dense"])
def test_a_dense_source_is_copied_bit_for_bit(readable: Path, tmp_path: Path, to: str) -> None:
    done = export(readable, tmp_path / "OUT", to=to)
    assert (done.target, done.types) == (to, SAME_TYPES)
    before, after = arrays(readable), arrays(tmp_path / "OUT")
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)
    assert (tmp_path / "OUT" / "tokenizer.json").read_bytes() == (
        readable / "tokenizer.json"
    ).read_bytes()


@pytest.mark.parametrize("to", ["mlx", "dense"])
def test_factors_are_multiplied_out(readable: Path, tmp_path: Path, to: str) -> None:
    compress(readable, tmp_path / "FACTORED", keep=0.5, check=False)
    export(tmp_path / "FACTORED", tmp_path / "OUT", to=to, type="f32")
    config = json.loads((tmp_path / "OUT" / "config.json").read_text())
    assert "plastic" not in config
    assert config["dtype"] == "float32"
    assert not (tmp_path / "OUT" / "plastic_model.py").exists()
    tokens = mx.array([[5, 6, 7]])
    models = [load_model(tmp_path / name) for name in ("FACTORED", "OUT")]
    for model in models:
        model.set_dtype(mx.float32)
    factored, dense = (np.array(model(tokens)) for model in models)
    np.testing.assert_allclose(dense, factored, atol=1e-5)


def test_codes_are_made_numbers(readable: Path, tmp_path: Path) -> None:
    import mlx_lm

    mlx_lm.convert(str(readable), str(tmp_path / "Q"), quantize=True, q_bits=4, q_group_size=32)
    export(tmp_path / "Q", tmp_path / "OUT", to="mlx", type="f32")
    assert "quantization" not in json.loads((tmp_path / "OUT" / "config.json").read_text())
    path = "model.layers.0.mlp.up_proj"
    packed = arrays(tmp_path / "Q")
    parts = [packed[f"{path}.{leaf}"] for leaf in ("weight", "scales", "biases")]
    wide = [parts[0], *(part.astype(mx.float32) for part in parts[1:])]
    expected = mx.dequantize(*wide, group_size=32, bits=4)
    assert mx.array_equal(arrays(tmp_path / "OUT")[f"{path}.weight"], expected)


def test_an_adapter_is_merged_into_the_base_that_is_named(readable: Path, tmp_path: Path) -> None:
    adapter, path = tmp_path / "ADAPTER", "model.layers.0.mlp.up_proj"
    adapter.mkdir()
    a, b = mx.random.normal((64, 2)), mx.random.normal((2, 96))
    mx.save_safetensors(
        str(adapter / "adapters.safetensors"), {f"{path}.lora_a": a, f"{path}.lora_b": b}
    )
    parameters = {"rank": 2, "scale": 0.5, "dropout": 0.0, "keys": ["mlp.up_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="name it with --base"):
        export(adapter, tmp_path / "OUT", to="mlx")
    export(adapter, tmp_path / "OUT", to="mlx", type="f32", base=readable)
    before, after = (arrays(f)[f"{path}.weight"] for f in (readable, tmp_path / "OUT"))
    expected = before.astype(mx.float32) + 0.5 * (a @ b).T
    assert mx.allclose(after, expected, atol=1e-5)


def test_what_transformers_knows_otherwise_is_no_dense_copy(
    make_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.models import llama

    def doubled(self: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return {name: 2 * weight for name, weight in weights.items()}

    monkeypatch.setattr(llama.Model, "sanitize", doubled)
    with pytest.raises(FormatError, match="take --to mlx"):
        export(make_llama(), tmp_path / "OUT", to="dense")
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize("to", TARGETS)
def test_a_place_that_is_taken_stays_as_it_is(readable: Path, tmp_path: Path, to: str) -> None:
    (tmp_path / "OUT").write_text("mine")
    with pytest.raises(FormatError, match="there already; choose another name"):
        export(readable, tmp_path / "OUT", to=to)
    assert (tmp_path / "OUT").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"to": "onnx"}, "`to` must be one of gguf, mlx, dense"),
        ({"to": "gguf", "type": "q4_k"}, "`type` must be one of f32, f16, bf16, q8_0"),
        ({"to": "mlx", "type": "q8_0"}, "`type` must be one of f32, f16, bf16, got"),
        ({"to": "dense", "piece": "adapter"}, "`piece` must be whole or base"),
        ({"to": "gguf", "piece": "adapter"}, "which has no adapter"),
        ({"to": "gguf", "base": "other"}, "`base` belongs to an adapter or a run"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(
    readable: Path, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        export(readable, tmp_path / "OUT", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "OUT").exists()


def test_an_architecture_that_is_not_written_is_named(readable: Path, tmp_path: Path) -> None:
    config = json.loads((readable / "config.json").read_text())
    (readable / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(FormatError, match="'mamba' are not written here; `plastic gguf` prints"):
        export(readable, tmp_path / "OUT.gguf", to="gguf")


def test_the_extra_is_named_where_it_is_missing(
    readable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r"plastic-export\[gguf\]"):
        export(readable, tmp_path / "OUT.gguf", to="gguf")
    assert not (tmp_path / "OUT.gguf").exists()
