"""Checkpoints as people meet them: they go through the commands, or end in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from zoo.building import CONFIGS, build_checkpoint
from zoo.chain import Row, same_bits
from zoo.forms import Config, Publish, Weights
from zoo.running import RefusedError, command
from zoo.sources import FP8, SOURCES
from zoo.stock import divergence, run_stock

Build = Callable[..., Row]
FEW = ("--window", 16, "--windows", 4)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """``build(model_type, form, **config)``: a row of the zoo, its settings or form replaced."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # plots take longer than a plan

    def make(model_type: str, form: str | Publish = "mlx", **config: Any) -> Row:
        monkeypatch.setitem(CONFIGS, model_type, CONFIGS[model_type] | config)
        if not isinstance(form, str):
            monkeypatch.setitem(SOURCES, model_type, {"own": form})
            form = "own"
        work = tmp_path / form
        return Row(build_checkpoint(work / "SRC", model_type, form), work)

    return make


def planned(row: Row, *budget: object, bits: str = "4") -> dict[str, Any]:
    """Plan a row, and return what the command prints."""
    asked = ("--bits", bits, *budget, *FEW, "--out", row.work / "plan.json")
    result: dict[str, Any] = command("plan", row.source, "--calibration", row.text, *asked)
    return result


def tensors(folder: Path) -> Weights:
    """Return the tensors of a folder of one file as they are stored."""
    return dict(mx.load(str(folder / "model.safetensors")))


UNEVEN = {"hidden_size": 192, "intermediate_size": 160}


def test_fp8_whose_blocks_divide_no_side_is_planned_as_what_it_stands_for(build: Build) -> None:
    row, twin = build("llama", FP8, **UNEVEN), build("llama", **UNEVEN)
    out = row.work / "OUT"
    (budget,) = planned(row, "--bits-per-weight", 6, bits="4,8")["budgets"]
    row.compress(out, "--plan", row.work / "plan.json", "--bits-per-weight", 6)
    measured = divergence(run_stock(twin.source), run_stock(out))
    assert measured < 5 * budget["predicted_kl"] + 0.01  # and not the hundreds of raw codes
    config = json.loads((out / "config.json").read_text())
    assert "quant_method" not in config["quantization_config"]


def interleaved(weights: Weights, config: Config) -> tuple[Weights, Config]:
    """Store the experts of gpt-oss as its fine-tunes in bfloat16: (expert, in, out), no .weight."""
    first = "experts.gate_proj.weight"
    for owner in [n.removesuffix("gate_proj.weight") for n in weights if n.endswith(first)]:
        for kind in ("weight", "bias"):
            halves = [weights.pop(f"{owner}{part}_proj.{kind}") for part in ("gate", "up")]
            weights[f"{owner}gate_up_proj.{kind}"] = mx.stack(halves, axis=2).flatten(1, 2)
        for part in ("gate_up_proj", "down_proj"):
            weights[f"{owner}{part}"] = weights.pop(f"{owner}{part}.weight").swapaxes(1, 2)
            weights[f"{owner}{part}_bias"] = weights.pop(f"{owner}{part}.bias")
    return weights, config


def test_a_form_of_experts_that_mlx_lm_does_not_load_is_refused_with_its_tensors(
    build: Build,
) -> None:
    row = build("gpt_oss", interleaved)
    for words in (
        ("plan", row.source, "--calibration", row.text, *FEW, "--keep", 0.5),
        ("compress", row.source, row.work / "OUT", "--keep", 0.8),
        ("evaluate", row.source, "--text", row.text, *FEW),
    ):
        with pytest.raises(RefusedError, match=r"not in model: model\.layers\.0\.mlp\.experts"):
            command(*words)
    assert not (row.work / "OUT").exists()


@pytest.mark.parametrize(
    ("model_type", "block"), [("glm4_moe", "model.layers.2."), ("deepseek_v3", "model.layers.61.")]
)
def test_a_block_for_further_tokens_is_named_counted_and_carried_along(
    build: Build, model_type: str, block: str
) -> None:
    row = build(model_type, "published")
    source = tensors(row.source)
    beyond = {name for name in source if name.startswith(block)}
    left = planned(row, "--bits-per-weight", 6)
    assert {name for name in left["left"] if name.startswith(block)} == {
        name for name in beyond if source[name].ndim > 1
    }
    assert left["left_bytes"] >= sum(source[name].nbytes for name in left["left"])
    outs = [row.work / name for name in ("planned", "factored", "dense")]
    row.compress(outs[0], "--plan", row.work / "plan.json", "--bits-per-weight", 6)
    for out in outs[1:]:
        row.compress(out, "--keep", 0.8, "--format", out.name)
    for out in outs:
        stored = tensors(out)
        assert all(same_bits(source[name], stored[name]) for name in beyond)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe_lite", "kimi_linear", "minicpm3"])
def test_no_matrix_of_latent_attention_leaves_a_plan_without_a_word(
    build: Build, model_type: str
) -> None:
    row = build(model_type)
    printed = planned(row, "--bits-per-weight", 6)
    plan = json.loads((row.work / "plan.json").read_text())
    named = {*printed["left"], *(one["name"] for one in printed["skipped"])}
    named |= plan["matrices"].keys()
    weights = {n: w for n, w in tensors(row.source).items() if n.endswith(".weight")}
    matrices = {n for n, w in weights.items() if w.ndim > 1 and "conv" not in n}
    assert matrices - named == set()


def test_what_is_published_is_planned_like_its_mlx_twin(build: Build) -> None:
    rows = [build("qwen3_5", form) for form in ("mlx", "published")]
    found = [planned(row, "--bits-per-weight", 6) for row in rows]
    one, other = (result["budgets"] for result in found)
    assert one == other
    assert found[0]["kinds"] == found[1]["kinds"]


def test_a_head_that_is_normalised_on_loading_diverges_as_predicted(build: Build) -> None:
    build("baichuan_m1").plan("mixed")
