"""Plans of bits executed on small random checkpoints: every tensor, the configuration, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.utils import load_model as stock_load
from mlx_lm.utils import quantize_model, save_config, save_model
from plastic_core.files import MLX_DTYPES, FormatError, load_safetensors, sha256_file
from plastic_core.testing import same_bits
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import module_path
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.plan_file import LossPlan, read_plan, source_identity, write_plan
from plastic_export.compression.restoration import restore
from plastic_export.compression.summary import summarize
from plastic_export.compression.verification import verify
from plastic_export.folder.shards import as_float32
from plastic_export.plan.gram_uses import gram_roots
from plastic_export.plan.offers import Candidate, Choice, plan_bits
from plastic_export.plan.prices import price
from plastic_export.plan.storing import rounded
from plastic_export.reporting.compress import present_by_plan
from plastic_export.source.source import Source
from plastic_runtime import GramFile, LossGrams
from plastic_runtime.dialling import read_manifest

Make = Callable[..., Path]
CandidatesOf = Callable[[Checkpoint], list[Candidate]]
WriteGrams = Callable[[Path, list[Candidate]], None]
Planned = Callable[[Path, Path], tuple[LossPlan, dict[str, LossGrams]]]
BUDGETS = (3.5, 5.0)
DOWN = "model.layers.0.mlp.down_proj"  # 96 inputs: groups of 32


def stored(folder: Path) -> dict[str, mx.array]:
    files = sorted(folder.glob("model*.safetensors"))
    return {name: array for file in files for name, array in load_safetensors(file).items()}


_PLANS: dict[str, tuple[LossPlan, dict[str, LossGrams], bytes]] = {}  # by digest of the source


@pytest.fixture
def planned(candidates_of: CandidatesOf, write_grams: WriteGrams) -> Planned:
    """``planned(source, file)``: what ``plan_checkpoint`` writes, but from random Grams."""

    def plan_of(source: Path, file: Path) -> tuple[LossPlan, dict[str, LossGrams]]:
        cache = file.with_suffix(".grams.npz")
        key = sha256_file(source / "model.safetensors")
        if key not in _PLANS:
            with open_checkpoint(source) as checkpoint:
                wanted = candidates_of(checkpoint)
                write_grams(cache, wanted)
                _PLANS[key] = (*made(checkpoint, wanted, cache), cache.read_bytes())
        plan, grams, content = _PLANS[key]
        cache.write_bytes(content)
        write_plan(file, plan)
        return plan, grams

    return plan_of


def made(
    checkpoint: Checkpoint, wanted: list[Candidate], cache: Path
) -> tuple[LossPlan, dict[str, LossGrams]]:
    with GramFile(cache) as file:
        grams = dict(file)
    offered = price(Source.of(checkpoint), wanted, grams)
    plan = LossPlan(
        source=source_identity(checkpoint),
        calibration={"window": 24},
        grams=(cache.name, sha256_file(cache)),
        matrices=offered,
        left=("model.embed_tokens.weight",),
        left_bytes=0,
        budgets=plan_bits(offered, BUDGETS),
    )
    return plan, grams


def edit(file: Path, change: Callable[[Any], None]) -> None:
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_tensor_is_what_the_plan_says_and_stock_mlx_lm_loads_it(
    make_checkpoint: Make,
    tiny_weights: dict[str, mx.array],
    planned: Planned,
    tmp_path: Path,
    dtype: str,
) -> None:
    before = {name: w.astype(MLX_DTYPES[dtype]) for name, w in tiny_weights.items()}
    source, file, out = make_checkpoint(weights=before), tmp_path / "plan.json", tmp_path / "out"
    plan, grams = planned(source, file)
    result = execute_plan(source, out, file, budget=3.5)
    after, chosen = stored(out), plan.budget(3.5).chosen
    for m in plan.matrices:
        path, bits = module_path(m.name), chosen[m.name].bits
        assert bits is not None
        W = as_float32(before[m.name])
        size = chosen[m.name].group_size
        expected = rounded(W, bits, gram_roots(grams[path]), m.matrix, group_size=size)
        arrays = {leaf: after.pop(f"{path}.{leaf}") for leaf in expected.arrays()}
        assert all(same_bits(a, arrays[leaf]) for leaf, a in expected.arrays().items())
        assert sum(a.nbytes for a in arrays.values()) == chosen[m.name].nbytes
        record = next(r for r in result.matrices if r.name == m.name)
        error = np.linalg.norm(W - expected.dequantized()) / np.linalg.norm(W)
        assert record.relative_error == pytest.approx(error, rel=1e-5)
    assert after.keys() == before.keys() - chosen.keys()
    assert all(same_bits(before[name], array) for name, array in after.items())
    model, config = stock_load(out)
    modules = dict(model.named_modules())
    for name, offer in chosen.items():
        assert modules[module_path(name)].bits == offer.bits
    assert modules[DOWN].group_size == 32
    assert type(modules["model.embed_tokens"]) is nn.Embedding
    assert config["quantization"] == config["quantization_config"]
    assert mx.isfinite(model(mx.array([[1, 2, 3]]))).all().item()


def test_the_folder_is_verified_and_cannot_be_restored(
    checkpoint_folder: Path, planned: Planned, tmp_path: Path
) -> None:
    planned(checkpoint_folder, tmp_path / "plan.json")
    out = tmp_path / "out"
    result = execute_plan(checkpoint_folder, out, tmp_path / "plan.json", budget=5.0)
    assert verify(out) == []
    manifest = read_manifest(out)
    assert tuple(manifest.matrices.values()) == result.matrices
    with pytest.raises(FormatError, match="what rounding took is not kept"):
        restore(out, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()
    bad = bytearray((out / "model.safetensors").read_bytes())
    bad[-3] ^= 1
    (out / "model.safetensors").write_bytes(bad)
    (defect,) = verify(out)
    assert "tensor" in defect


def test_the_same_plan_writes_the_same_bytes(
    checkpoint_folder: Path, planned: Planned, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    planned(checkpoint_folder, file)
    for name in "ab":
        execute_plan(checkpoint_folder, tmp_path / name, file, budget=3.5)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_plan_may_be_edited_to_anything_that_is_offered(
    checkpoint_folder: Path, planned: Planned, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    name = f"{DOWN}.weight"
    plan, _ = planned(checkpoint_folder, file)
    assert read_plan(file) == plan

    def all_but_one_as_they_are(raw: Any) -> None:
        for choice in raw["budgets"][0]["matrices"].values():
            choice["bits"] = None
        raw["budgets"][0]["matrices"][name] |= {"bits": 8, "group_size": 32}

    edit(file, all_but_one_as_they_are)
    result = execute_plan(checkpoint_folder, out, file, budget=3.5)
    assert result.plan.mix == {"8 bits, groups of 32": 1, "source": len(plan.matrices) - 1}
    before, after = stored(checkpoint_folder), stored(out)
    assert all(same_bits(before[n], after[n]) for n in before if n != name)
    modules = dict(stock_load(out)[0].named_modules())
    assert type(modules[DOWN]) is nn.QuantizedLinear
    assert type(modules[DOWN.replace("down", "up")]) is nn.Linear


def test_a_quantised_source_keeps_what_is_kept_and_packs_the_rest_anew(
    checkpoint_folder: Path, planned: Planned, tmp_path: Path
) -> None:
    source, file, out = tmp_path / "q8", tmp_path / "plan.json", tmp_path / "out"
    model, config = quantize_model(*stock_load(checkpoint_folder), 32, 8)
    save_model(source, model)
    save_config(config, source / "config.json")
    plan, _ = planned(source, file)
    kept = "lm_head.weight"
    edit(file, lambda raw: raw["budgets"][0]["matrices"][kept].update(bits=None))
    execute_plan(source, out, file, budget=3.5)
    before, after = stored(source), stored(out)
    for leaf in ("weight", "scales", "biases"):
        for path in ("lm_head", "model.embed_tokens"):
            assert same_bits(before[f"{path}.{leaf}"], after[f"{path}.{leaf}"])
    chosen = read_plan(file).budget(3.5).chosen
    modules = dict(stock_load(out)[0].named_modules())
    for m in plan.matrices:
        found = modules[module_path(m.name)]
        offer = chosen[m.name]
        expected = (8, 32) if m.name == kept else (offer.bits, offer.group_size)
        assert (found.bits, found.group_size) == expected
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.shape(f"{DOWN}.weight") == (64, 96)


def tamper_weights(source: Path, _: Path) -> None:
    path = source / "model.safetensors"
    bad = bytearray(path.read_bytes())
    bad[-1] ^= 1
    path.write_bytes(bad)


def tamper_config(source: Path, _: Path) -> None:
    edit(source / "config.json", lambda raw: raw.update(rope_theta=1e6))


def tamper_shape(source: Path, _: Path) -> None:
    weights = stored(source)
    weights["model.norm.weight"] = mx.ones(63, mx.bfloat16)
    mx.save_safetensors(str(source / "model.safetensors"), weights)


def lose_grams(_: Path, file: Path) -> None:
    file.with_suffix(".grams.npz").unlink()


def tamper_grams(_: Path, file: Path) -> None:
    file.with_suffix(".grams.npz").write_bytes(b"other")


def unknown_bits(_: Path, file: Path) -> None:
    edit(file, lambda raw: raw["budgets"][0]["matrices"]["lm_head.weight"].update(bits=7))


def no_bits(_: Path, file: Path) -> None:
    edit(file, lambda raw: raw["budgets"][0]["matrices"].pop("lm_head.weight"))


def foreign_bits(_: Path, file: Path) -> None:
    edit(file, lambda raw: raw["budgets"][0]["matrices"].update({"x.weight": {"bits": 2}}))


def other_schema(_: Path, file: Path) -> None:
    edit(file, lambda raw: raw.update(schema=99))


def outside_grams(_: Path, file: Path) -> None:
    edit(file, lambda raw: raw["grams"].update(file="../plan.grams.npz"))


def rank_in_mixed_bits(_: Path, file: Path) -> None:
    def change(raw: Any) -> None:
        new = {"bits": 3, "rank": 2, "factor_bits": 8}
        raw["matrices"]["lm_head.weight"]["offers"].insert(0, new | {"bytes": 1, "predicted_kl": 0})
        raw["budgets"][0]["matrices"]["lm_head.weight"] = new

    edit(file, change)


def describe(**changed: Any) -> Callable[[Path, Path], None]:
    def spoil(_: Path, file: Path) -> None:
        edit(file, lambda raw: raw["matrices"]["lm_head.weight"].update(changed))

    return spoil


other_shape, other_dtype, other_group = (
    describe(shape=[3, 4]),
    describe(dtype="F31"),
    describe(group_size=0),
)


def no_such_matrix(_: Path, file: Path) -> None:
    def change(raw: Any) -> None:
        raw["matrices"]["x.weight"] = raw["matrices"]["lm_head.weight"]
        for budget in raw["budgets"]:
            budget["matrices"]["x.weight"] = {"bits": 3}

    edit(file, change)


def matrix_without_grams(source: Path, file: Path) -> None:
    def change(raw: Any) -> None:
        name, like = "model.embed_tokens.weight", raw["matrices"]["lm_head.weight"]
        raw["matrices"][name] = like | {"kind": "embedding"}
        for budget in raw["budgets"]:
            budget["matrices"][name] = {"bits": 3}

    edit(file, change)


def no_files(_: Path, file: Path) -> None:
    edit(file, lambda raw: raw["source"].update(files=[]))


def bytes_in_words(_: Path, file: Path) -> None:
    edit(file, lambda raw: raw["matrices"]["lm_head.weight"]["offers"][0].update(bytes="many"))


def edit_choice(change: Callable[[Any], object]) -> Callable[[Path, Path], None]:
    def spoil(_: Path, file: Path) -> None:
        edit(file, lambda raw: change(raw["budgets"][0]["matrices"]))

    return spoil


MALFORMED = [
    (
        lambda c: c["lm_head.weight"].update(bit=4),
        r"'lm_head\.weight': the entry 'bit' is not known",
    ),
    (
        lambda c: c["lm_head.weight"].update(bits="4"),
        r"`bits` of 'lm_head\.weight' must be .*got '4'",
    ),
    (
        lambda c: c["lm_head.weight"].update(bits=[4]),
        r"`bits` of 'lm_head\.weight' must be .*got \[4",
    ),
    (lambda c: c["lm_head.weight"].pop("bits"), r"'bits' of 'lm_head\.weight' is missing"),
    (lambda c: c.update({"lm_head.weight": 4}), r"'lm_head\.weight': 4 is no object"),
    (lambda c: c.update({"lm_head.weight": [4]}), r"'lm_head\.weight': \[4\] is no object"),
    (lambda c: c.update({"lm_head.weight": None}), r"'lm_head\.weight': None is no object"),
]


@pytest.mark.parametrize(("change", "said"), MALFORMED, ids=[said for _, said in MALFORMED])
def test_an_edit_that_is_malformed_is_refused_with_the_matrix(
    checkpoint_folder: Path,
    planned: Planned,
    tmp_path: Path,
    change: Callable[[Any], object],
    said: str,
) -> None:
    file = tmp_path / "plan.json"
    planned(checkpoint_folder, file)
    edit_choice(change)(checkpoint_folder, file)
    with pytest.raises(FormatError, match=rf"plan\.json: .*{said}"):
        read_plan(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.update(budget=[]), "the entry 'budget' is not known"),
        (lambda raw: raw["budgets"][0].update(bits=3), "the entry 'bits' is not known"),
        (
            lambda raw: raw["matrices"]["lm_head.weight"].update(bits=3),
            "'lm_head.weight': the entry",
        ),
        (
            lambda raw: raw["matrices"]["lm_head.weight"].pop("kind"),
            "'kind' of 'lm_head.weight' is m",
        ),
        (
            lambda raw: raw["matrices"].update({"lm_head.weight": []}),
            "'lm_head.weight': .. is no obj",
        ),
    ],
)
def test_an_entry_that_is_not_known_or_missing_is_named(
    checkpoint_folder: Path,
    planned: Planned,
    tmp_path: Path,
    change: Callable[[Any], object],
    said: str,
) -> None:
    file = tmp_path / "plan.json"
    planned(checkpoint_folder, file)
    edit(file, change)
    with pytest.raises(FormatError, match=said):
        read_plan(file)


def test_a_plan_that_was_edited_above_its_budget_says_so(
    checkpoint_folder: Path, planned: Planned, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    planned(checkpoint_folder, file)
    below = present_by_plan(execute_plan(checkpoint_folder, tmp_path / "a", file, budget=3.5))
    assert not any("edited above it" in str(line) for line in below.lines)

    def all_of_eight_bits(choices: Any) -> None:
        for choice in choices.values():
            choice["bits"] = 8

    edit_choice(all_of_eight_bits)(checkpoint_folder, file)
    above = present_by_plan(execute_plan(checkpoint_folder, tmp_path / "b", file, budget=3.5))
    assert any("(asked for 3.5, and edited above it)" in str(line) for line in above.lines)


REFUSALS = {
    rank_in_mixed_bits: r"mixed bits has no corrections, but ranks \[2\]",
    other_shape: r"plan\.json: 'lm_head\.weight' is not described as the source has it",
    other_dtype: r"'lm_head\.weight' is not described as the source has it",
    other_group: r"'lm_head\.weight' is not described as the source has it",
    no_such_matrix: r"'x\.weight' is not described as the source has it",
    matrix_without_grams: r"nothing was measured at 'model\.embed_tokens\.weight'",
    no_files: r"plan\.json: the plan was made for .*'model\.safetensors' differs",
    bytes_in_words: r"plan\.json: .*'many'; correct it, or plan again",
    tamper_weights: r"plan\.json: the plan was made for 'tiny'.*'model\.safetensors' differs",
    tamper_config: r"config\.json differs; plan for this source",
    tamper_shape: r"tensor 'model\.norm\.weight' differs",
    lose_grams: r"plan\.grams\.npz: missing.*plastic plan",
    tamper_grams: r"plan\.grams\.npz: not the Grams",
    unknown_bits: r"'lm_head\.weight' must be one of 2, 3, 4, 5, 6, 8, null, .*got 7",
    no_bits: r"'lm_head\.weight' is missing",
    foreign_bits: r"'x\.weight', which is not among",
    other_schema: r"schema 99",
    outside_grams: r"another folder",
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda f: f.__name__)
def test_what_does_not_fit_the_plan_is_refused_by_name(
    make_checkpoint: Make, planned: Planned, tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    source, file = make_checkpoint(), tmp_path / "plan.json"
    planned(source, file)
    spoil(source, file)
    with pytest.raises(FormatError, match=REFUSALS[spoil]) as caught:
        execute_plan(source, tmp_path / "out", file, budget=3.5)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_one_of_several_budgets_must_be_named(
    checkpoint_folder: Path, planned: Planned, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    plan, _ = planned(checkpoint_folder, file)
    with pytest.raises(ValueError, match=r"holds the budgets 3\.5, 5;"):
        plan.budget()
    with pytest.raises(ValueError, match=r"one of the plan's, 3\.5, 5, got 4"):
        plan.budget(4.0)
    assert plan.budget(5.0).budget == 5.0


def test_a_packed_folder_is_inspected_as_the_dense_one_it_stands_for(
    make_checkpoint: Make, planned: Planned, tmp_path: Path
) -> None:
    source, file, out = make_checkpoint(), tmp_path / "plan.json", tmp_path / "out"
    planned(source, file)
    result = execute_plan(source, out, file, budget=3.5)
    dense, packed = (summarize(str(folder)) for folder in (source, out))
    assert packed.parameters == dense.parameters
    assert {(g.name, g.shape, g.count) for g in packed.groups} == {
        (g.name, g.shape, g.count) for g in dense.groups
    }
    inside = [r for r in result.matrices if "layers" in r.name]
    assert sum(g.nbytes for g in packed.groups) == sum(r.stored_bytes for r in inside)


@pytest.mark.parametrize(
    ("bits", "needed"), [({4, 8}, None), ({3, 4}, ">=0.21"), ({2, 5, 6}, ">=0.26")]
)
def test_the_engines_that_an_output_needs_are_told(
    checkpoint_folder: Path,
    make_plan: Callable[..., LossPlan],
    tmp_path: Path,
    bits: set[int],
    needed: str | None,
) -> None:
    names = [f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkv"]
    choices = {name: Choice(width) for name, width in zip(names, sorted(bits), strict=False)}
    make_plan(checkpoint_folder, tmp_path / "plan.json", choices, "mixed")
    result = execute_plan(checkpoint_folder, tmp_path / "out", tmp_path / "plan.json")
    manifest = json.loads((tmp_path / "out" / "plastic.json").read_text())
    assert manifest.get("needs", {}).get("mlx") == needed
    told = [line for line in map(str, present_by_plan(result).lines) if "or newer" in line]
    assert len(told) == (needed is not None)
    assert verify(tmp_path / "out") == []
