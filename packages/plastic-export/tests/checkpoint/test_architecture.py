"""The architecture of a factored folder: hidden from transformers, known to this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model as stock_load
from plastic_export import compress, restore
from plastic_export.checkpoint.architecture import hidden, revealed
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.summary import summarize
from plastic_export.gguf.guide import gguf_guide
from plastic_export.model.load import load_model
from transformers import AutoConfig
from transformers.quantizers.auto import AutoHfQuantizer

STOCK = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize(
    "names",
    [
        STOCK,
        {"model_type": "gpt2"},
        {"model_type": "llama", "architectures": None},
        {"model_type": "llama", "architectures": "LlamaForCausalLM"},
    ],
)
def test_what_is_revealed_is_what_was_hidden(names: dict[str, Any]) -> None:
    config = {**names, "hidden_size": 16, "plastic": {"version": 3, "ranks": {}}}
    assert hidden(config)["model_type"] == names["model_type"]
    assert hidden(config)["quantization_config"] == {}
    assert revealed(hidden(config)) == config
    assert revealed(config) == config
    assert revealed(names) == names


@pytest.fixture
def factored(checkpoint_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "factored"
    compress(checkpoint_folder, out, keep=0.5)
    return out


def test_a_factored_folder_is_none_that_transformers_runs(factored: Path) -> None:
    config = AutoConfig.from_pretrained(factored)
    assert config.architectures == ["PlasticLlamaForCausalLM"]
    with pytest.raises(ValueError, match="has no `quant_method` attribute"):
        AutoHfQuantizer.supports_quant_method(config.quantization_config)


def test_stock_mlx_lm_and_this_package_know_what_it_is(
    factored: Path, checkpoint_folder: Path, tmp_path: Path
) -> None:
    model, _ = stock_load(factored, trust_remote_code=True)
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(model(tokens), load_model(factored)(tokens))
    assert model.model_type == "llama"
    with open_checkpoint(factored) as checkpoint:
        assert {name: checkpoint.config[name] for name in STOCK} == STOCK
        assert summarize(factored).model_type == "llama"
        assert any("plastic export" in line for line in gguf_guide(factored))
    restore(factored, tmp_path / "restored")
    assert config_of(tmp_path / "restored") == config_of(checkpoint_folder)


def test_a_folder_of_an_older_release_is_read(factored: Path) -> None:
    tokens = mx.array([[1, 2, 3]])
    before = load_model(factored)(tokens)
    config = revealed(config_of(factored))
    config["plastic"]["version"] = 2
    (factored / "config.json").write_text(json.dumps(config))
    assert mx.array_equal(load_model(factored)(tokens), before)
    assert mx.array_equal(stock_load(factored, trust_remote_code=True)[0](tokens), before)
