"""Outputs of sources that mlx-lm rewrites while it loads them: they load as the source does."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.utils import load_model as stock_load
from plastic_core.files import FormatError, load_safetensors
from plastic_core.testing import parameters, same_bits
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.compression.plan_file import LossPlan
from plastic_export.compression.restoration import restore
from plastic_export.compression.selecting import Remainder, plannable
from plastic_export.compression.verification import verify
from plastic_export.format.arranging import unkept_layers
from plastic_export.format.layout import Contents
from plastic_export.format.mixed import MixedFormat
from plastic_export.plan.offers import Choice, Offer
from plastic_export.source.source import Source

Make = Callable[..., Path]
MakePlan = Callable[..., LossPlan]
Weights = dict[str, mx.array]
Sanitize = Callable[[llama.Model, Weights], Weights]

Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
NORM, HEAD = "model.norm.weight", "lm_head.weight"
TOWER, NEXT = "vision.patches.weight", "mtp.norm.weight"
EXTRA = {TOWER: mx.ones((8, 6), mx.bfloat16), NEXT: mx.ones(64, mx.bfloat16)}
OUTER = "outer."


def without(weights: Weights, *prefixes: str) -> Weights:
    return {name: w for name, w in weights.items() if not name.startswith(prefixes)}


def drops(model: llama.Model, weights: Weights) -> Weights:
    """Other towers are left out."""
    return without(weights, "vision.", "mtp.")


def renames(model: llama.Model, weights: Weights) -> Weights:
    """All is inside something larger."""
    return {name.removeprefix(OUTER): w for name, w in drops(model, weights).items()}


def shifts(model: llama.Model, weights: Weights) -> Weights:
    """A norm is shifted where the block for the next token but one is there."""
    shift = 1 if NEXT in weights else 0
    return renames(model, weights | {OUTER + NORM: weights[OUTER + NORM] + shift})


def folds(model: llama.Model, weights: Weights) -> Weights:
    """Factors are folded into weights as they are published, and these are told by their names."""
    if OUTER + NORM not in weights:
        return drops(model, weights)
    weights = renames(model, weights)
    return weights | {name: 3 * weights[name] for name in (Q, NORM)}


def forbids(model: llama.Model, weights: Weights) -> Weights:
    """As `folds`, and what is dropped is taken for a sign that it was not done yet."""
    if NEXT not in weights:
        return weights
    weights = renames(model, weights)
    return weights | {name: 3 * weights[name] for name in (Q, NORM)}


def always(model: llama.Model, weights: Weights) -> Weights:
    """A factor is folded in at each loading."""
    return drops(model, weights | {Q: 3 * weights[Q]})


CASES: list[tuple[Sanitize, str, set[str]]] = [
    (drops, "", {TOWER, NEXT, NORM}),
    (renames, OUTER, {TOWER, NEXT, OUTER + NORM}),
    (shifts, OUTER, {TOWER, NEXT, OUTER + NORM}),
    (folds, OUTER, {TOWER, NEXT, NORM}),
    (forbids, OUTER, {NORM}),
]
"""What loading does, where the tensors of the source are, and some that the output must have."""


@pytest.fixture(params=CASES, ids=lambda case: case[0].__name__)
def case(
    request: pytest.FixtureRequest,
    make_checkpoint: Make,
    tiny_weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Sanitize, set[str]]:
    sanitize, prefix, kept = request.param
    weights = {f"{prefix}{name}": w for name, w in tiny_weights.items()} | EXTRA
    source = make_checkpoint("rewritten", weights=weights)
    monkeypatch.setattr(llama.Model, "sanitize", sanitize)
    return source, sanitize, kept


Case = tuple[Path, Sanitize, set[str]]


def check_loaded(source: Path, out: Path, changed: set[str], kept: set[str]) -> Weights:
    """All that is not stored anew loads with the bits of the source; return what was written."""
    assert verify(out) == []
    before = parameters(stock_load(source)[0])
    after = parameters(stock_load(out)[0])
    for name in before.keys() - changed:
        assert same_bits(after[name], before[name]), name
    written = load_safetensors(out / "model.safetensors")
    stored = load_safetensors(source / "model.safetensors")
    assert kept <= written.keys()
    assert all(same_bits(written[name], stored[name]) for name in EXTRA.keys() & written.keys())
    return written


@pytest.mark.parametrize("exact", [False, True])
def test_a_plan_is_written_so_that_mlx_lm_loads_it_as_its_source(
    case: Case, make_plan: MakePlan, tmp_path: Path, exact: bool
) -> None:
    source, _, kept = case
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(source, file, {Q: Choice(8), UP: Choice(8)}, "mixed")
    execute_plan(source, out, file, exact=exact)
    check_loaded(source, out, {Q, UP}, kept)
    loaded = stock_load(out)[0]
    layers = dict(loaded.named_modules())
    with open_checkpoint(source) as checkpoint:
        traced = Source.of(checkpoint)
        for name in (Q, UP):
            (W,) = traced.matrices(traced.layers[name])
            layer = layers[name.removesuffix(".weight")]
            packed = (layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits)
            found = np.array(mx.dequantize(*packed).astype(mx.float32))
            distance = np.linalg.norm(found - W) / np.linalg.norm(W)
            assert distance < 0.02  # 0.012 here; 2/3 if a factor were missing
    if exact:
        assert restore(out, tmp_path / "back").proved
        back = load_safetensors(tmp_path / "back" / "model.safetensors")
        stored = load_safetensors(source / "model.safetensors")
        assert back.keys() == stored.keys()
        assert all(same_bits(back[name], stored[name]) for name in stored)


def test_factors_come_back_dense_in_a_form_that_mlx_lm_loads_as_the_source(
    case: Case, tmp_path: Path
) -> None:
    source, _, kept = case
    out, back = tmp_path / "out", tmp_path / "back"
    result = compress(source, out, keep=0.6, strategy="energy")
    factored = {m.name for m in result.matrices if not m.is_unchanged}
    assert Q in factored
    assert kept <= load_safetensors(out / "model.safetensors").keys()
    restored = restore(out, back)
    assert restored.bounds.keys() == factored
    before, after = (parameters(stock_load(folder)[0]) for folder in (source, back))
    for name, array in before.items():
        if name not in factored:
            assert same_bits(after[name], array), name
            continue
        W, there = (np.array(a.astype(mx.float32)) for a in (array, after[name]))
        assert np.linalg.norm(there - W) <= 1.01 * restored.bounds[name] * np.linalg.norm(W)


def test_a_source_that_no_output_can_be_loaded_like_is_refused_before_the_work(
    make_checkpoint: Make,
    tiny_weights: Weights,
    make_plan: MakePlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make_checkpoint("always", weights=tiny_weights | EXTRA)
    monkeypatch.setattr(llama.Model, "sanitize", always)
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(source, file, {Q: Choice(8)}, "mixed")
    with pytest.raises(FormatError, match=r"cannot be kept in an output: .*q_proj.*convert it"):
        execute_plan(source, out, file)
    assert not out.exists()


def test_a_layer_that_is_changed_whenever_it_is_loaded_can_stay_as_it_is(
    make_checkpoint: Make, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint("always", weights=tiny_weights | EXTRA)
    monkeypatch.setattr(llama.Model, "sanitize", always)
    with open_checkpoint(source) as checkpoint:
        traced = Source.of(checkpoint)
        planned = plannable(traced)
        offers = {m.name: Offer(8, 0, 0.0, group_size=m.group_size) for m in planned}
        assert unkept_layers(traced, Contents.of(MixedFormat(), planned, offers)) == {Q}
        rest = [m for m in planned if m.name != Q]
        assert {*Remainder.of(traced, rest).weights} == {Q, TOWER}


@pytest.mark.parametrize("by_rank", [False, True])
def test_a_copy_of_the_tied_embedding_is_not_carried_along_but_comes_back_exactly(
    make_checkpoint: Make,
    tiny_weights: Weights,
    make_plan: MakePlan,
    tmp_path: Path,
    by_rank: bool,
) -> None:
    table = tiny_weights["model.embed_tokens.weight"]
    weights = tiny_weights | {HEAD: table}
    source = make_checkpoint("tied", weights=weights, tie_word_embeddings=True)
    file, out = tmp_path / "plan.json", tmp_path / "out"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if by_rank:
            compress(source, out, keep=0.6, strategy="energy", exact=True)
        else:
            make_plan(source, file, {Q: Choice(4)}, "mixed")
            execute_plan(source, out, file, exact=True)
    assert any("it is not copied" in str(warning.message) for warning in said)
    assert HEAD not in load_safetensors(out / "model.safetensors")
    assert restore(out, tmp_path / "back").proved
    back: Any = load_safetensors(tmp_path / "back" / "model.safetensors")
    assert same_bits(back[HEAD], table)


def test_config_of_an_output_says_how_what_stays_packed_is_packed(
    make_checkpoint: Make, tiny_weights: Weights, make_plan: MakePlan, tmp_path: Path
) -> None:
    path = UP.removesuffix(".weight")
    leaves = ("weight", "scales", "biases")
    packed = mx.quantize(tiny_weights[UP], group_size=32, bits=8)
    parts = {f"{path}.{leaf}": a for leaf, a in zip(leaves, packed, strict=True)}
    packing = {"group_size": 32, "bits": 8}
    source = make_checkpoint("packed", weights=tiny_weights | parts, quantization=packing)
    make_plan(source, tmp_path / "plan.json", {Q: Choice(4)}, "mixed")
    execute_plan(source, tmp_path / "out", tmp_path / "plan.json")
    layers = dict(stock_load(tmp_path / "out")[0].named_modules())
    assert (layers[path].bits, layers[path].group_size) == (8, 32)
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert stated[Q.removesuffix(".weight")]["bits"] == 4


@pytest.mark.parametrize("format", ["dense", "factored"])
@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"quant_method": "torchao"},
    ],
    ids=lambda said: said["quant_method"],
)
def test_what_another_tool_says_of_plain_weights_is_not_said_of_an_output(
    make_checkpoint: Make, tmp_path: Path, said: dict[str, Any], format: str
) -> None:
    source = make_checkpoint("plain", quantization_config=said)
    compress(source, tmp_path / "out", keep=0.6, strategy="energy", format=format)
    stock_load(tmp_path / "out", trust_remote_code=True)


def test_code_of_a_tokenizer_that_is_not_copied_is_told(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    source = make_checkpoint("coded")
    named = {"auto_map": {"AutoTokenizer": [None, "tokenization_x.T"]}}
    (source / "tokenizer_config.json").write_text(json.dumps(named))
    with pytest.warns(UserWarning, match="'auto_map' names code .* which is not copied"):
        compress(source, tmp_path / "out", keep=0.6, strategy="energy")
