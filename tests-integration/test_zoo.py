"""The zoo: it has every type that mlx-lm has, and what it calls published loads as such."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import mlx.core as mx
import mlx_lm.models
import pytest
from mlx_lm.utils import MODEL_REMAPPING
from zoo.building import CONFIGS, TEXT, build_checkpoint
from zoo.experts import SLIDING
from zoo.running import RefusedError, command
from zoo.skipped import PART, SKIPPED


def test_the_zoo_has_every_type_that_mlx_lm_has() -> None:
    modules = {module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)}
    assert {*CONFIGS, *SKIPPED} == modules | MODEL_REMAPPING.keys()


@pytest.mark.parametrize("name", [name for name, reason in SKIPPED.items() if reason is PART])
def test_a_part_of_models_is_no_model(name: str) -> None:
    assert not hasattr(import_module(f"mlx_lm.models.{name}"), "Model")


TEXT_CONFIG = {
    **CONFIGS["mixtral"],
    "layer_types": SLIDING,
    "layer_rope_theta": [10000.0, 0],
    "rope_parameters": {"rope_theta": 10000.0},
    "sliding_window": 8,
    "post_norm_eps": 1e-8,
    "final_logit_softcapping": 20.0,
    "output_multiplier": 0.2,
    "moe_hidden_size": 64,
    "moe_intermediate_size": 64,
}
MUSE_SPARK = {"text_config": TEXT_CONFIG, "audio_config": {"out_hidden_size": 64}}


@pytest.mark.skipif(mx.metal.is_available(), reason="runs there")
def test_a_model_that_needs_metal_is_refused_in_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(CONFIGS, "muse_spark", MUSE_SPARK)
    source = build_checkpoint(tmp_path / "SRC", "muse_spark", "mlx")
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    few = ("--window", 16, "--windows", 2)
    with pytest.raises(RefusedError, match="kernel for Metal alone"):
        command("evaluate", source, "--text", text, *few)
