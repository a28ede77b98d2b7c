"""The zoo: it has every type that mlx-lm has, and what it calls published loads as such."""

from __future__ import annotations

import json
import pkgutil
from importlib import import_module
from pathlib import Path

import mlx.core as mx
import mlx_lm.models
import pytest
from mlx_lm.utils import MODEL_REMAPPING
from zoo.building import CONFIGS, TEXT, build_checkpoint
from zoo.chain import run_row
from zoo.experts import SLIDING
from zoo.running import FAILED, OK, RefusedError, command
from zoo.skipped import PART, SKIPPED


def test_the_zoo_has_every_type_that_mlx_lm_has() -> None:
    modules = {module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)}
    assert {*CONFIGS, *SKIPPED} == modules | MODEL_REMAPPING.keys()


@pytest.mark.parametrize("name", [name for name, reason in SKIPPED.items() if reason is PART])
def test_a_part_of_models_is_no_model(name: str) -> None:
    assert not hasattr(import_module(f"mlx_lm.models.{name}"), "Model")


EXACTLY = ("factored", "restore")
SELECTED = {  # a row for each way in which mlx-lm rewrites what is published
    ("gpt2", "published"): ("mixed", *EXACTLY, "train"),  # transposed, renamed
    ("ministral3", "published"): ("mixed",),  # multiplied by scales
    ("minicpm", "published"): EXACTLY,  # a tensor that becomes two parameters
    ("mixtral", "published"): EXACTLY,  # experts that are stacked
    ("gemma3", "published"): EXACTLY,  # a nested model, a tower that is dropped
    ("falcon_h1", "published"): ("mixed", *EXACTLY),  # multiplied by settings
    ("qwen3_5", "published"): EXACTLY,  # norms around zero, blocks for further tokens
    ("nemotron-nas", "mlx"): ("corrected",),  # blocks of several kinds
    ("deepseek_v3", "published"): EXACTLY,  # a matrix that is split in two, a block that is dropped
    ("gpt_oss", "published"): EXACTLY,  # packed and interleaved
    ("prism_hadamard_qwen35", "mlx"): ("dense",),  # has codes of its own
    ("seed_oss", "mlx"): ("mixed",),  # multiplies by the embedding past its layer
    ("bitnet", "mlx"): ("mixed", "train"),  # what does not run here
}


@pytest.mark.parametrize(("row", "cells"), SELECTED.items(), ids=map("-".join, SELECTED))
def test_no_cell_of_these_rows_fails(
    row: tuple[str, str], cells: tuple[str, ...], tmp_path: Path
) -> None:
    outcomes = run_row(*row, tmp_path / "row", cells)
    assert {name: one.line for name, one in outcomes.items() if one.status == FAILED} == {}
    if row[0] != "bitnet":
        assert {name for name, one in outcomes.items() if one.status == OK} >= {*cells}


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


def test_a_head_that_is_normalised_at_every_loading_is_left_as_it_is_and_named(tmp_path) -> None:
    source = build_checkpoint(tmp_path / "SRC", "bailing_moe", "published")
    text, file, out = tmp_path / "text.txt", tmp_path / "plan.json", tmp_path / "OUT"
    text.write_text(TEXT)
    asked = ("--bits", 4, "--bits-per-weight", 5, "--window", 16, "--windows", 4, "--out", file)
    words = ("plan", source, "--calibration", text, *asked)
    command(*words)
    (skipped,) = json.loads(file.read_text())["skipped"]
    assert skipped["name"] == "lm_head.weight"
    assert skipped["reason"].startswith("mlx-lm changes whatever is stored of it")
    command("compress", source, out, "--plan", file, "--bits-per-weight", 5)
    command("verify", out)
