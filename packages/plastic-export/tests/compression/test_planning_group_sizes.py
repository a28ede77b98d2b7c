"""Group sizes beside the bits: offered where they divide, bought, edited, written, healed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model as stock_load
from mlx_lm.utils import quantize_model, save_config, save_model
from plastic_core.factors import GROUP_SIZES
from plastic_core.files import FormatError, load_safetensors
from plastic_core.testing import same_bits
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.tensors import module_path
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.plan_file import LossPlan, read_plan
from plastic_export.compression.planning import plan_checkpoint
from plastic_export.compression.restoration import restore
from plastic_export.compression.summary import summarize
from plastic_export.compression.verification import verify
from plastic_export.folder.header_bytes import entry_bytes
from plastic_export.format.parts import Part
from plastic_export.format.table import FORMATS
from plastic_export.healing.heal_folder import heal
from plastic_export.healing.loop import HealingOptions
from plastic_export.model.load import load_model
from plastic_export.plan.budgets import Budget
from plastic_export.plan.choices import Choices
from plastic_export.plan.offers import Candidate, Choice, Offer, packed_bytes
from plastic_export.reporting.compress import present_by_plan
from plastic_runtime.dialling import read_manifest

Make = Callable[..., Path]
BITS = (2, 4)
WIDE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
EVEN = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
UP, DOWN, GATE = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "down", "gate"))
TOKENS = mx.array([[1, 5, 9, 40, 17, 3]])


def planned(source: Path, text: Path, format: str = "mixed", **options: Any) -> LossPlan:
    """A plan beside the text, from a short calibration."""
    settings: dict[str, Any] = {"budgets": [3.3], "choices": Choices(bits=BITS), "force": True}
    few = Calibration(text, window=24, windows=16)
    file = text.with_name("plan.json")
    return plan_checkpoint(source, file, calibration=few, format=format, **(settings | options))


def tensors_of(folder: Path) -> dict[str, mx.array]:
    files = sorted(folder.glob("model*.safetensors"))
    return {name: array for file in files for name, array in load_safetensors(file).items()}


@pytest.fixture
def wide(make_llama: Make) -> Path:
    """A Llama with sides of 128, which all group sizes divide, and of 192, which two do."""
    return make_llama("wide", **WIDE)


@pytest.fixture
def packed_by_mlx(make_llama: Make) -> Make:
    """``packed_by_mlx(bits, group_size, mode)``: a Llama that mlx-lm packed, the head included."""

    def make(bits: int, group_size: int, mode: str = "affine") -> Path:
        plain = make_llama("even", **EVEN)
        folder = plain.with_name("packed")
        model, config = quantize_model(*stock_load(plain), group_size, bits, mode=mode)
        save_model(folder, model)
        save_config(config, folder / "config.json")
        for file in plain.glob("tokenizer*"):
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    return make


def test_every_group_size_that_divides_the_inputs_is_on_offer(wide: Path, text: Path) -> None:
    plan = planned(wide, text)
    for m in plan.matrices:
        fitting = {size for size in GROUP_SIZES if m.matrix.shape[1] % size == 0}
        offered = {o.group_size for o in m.offers if o.bits}
        assert offered <= fitting
        assert {64, 32} <= fitting
    assert {o.group_size for m in plan.matrices for o in m.offers} == {0, *GROUP_SIZES}
    narrow = planned(wide, text, choices=Choices(bits=(4,), group_sizes=(128,)), budgets=[4.5])
    sizes = {m.name: {o.group_size for o in m.offers if o.bits} for m in narrow.matrices}
    assert {sizes.pop(f"model.layers.{i}.mlp.down_proj.weight") == {64} for i in (0, 1)} == {True}
    assert all(found == {128} for found in sizes.values())


def test_no_plan_by_one_group_size_is_below_the_bound_of_all(wide: Path, text: Path) -> None:
    few: dict[str, Any] = {"budgets": [3.3, 4.2], "include": ["*.0.mlp.*"]}
    free = planned(wide, text, **few)
    for size in GROUP_SIZES:
        bound = planned(wide, text, **few, choices=Choices(BITS, group_sizes=(size,)))
        for mine, theirs in zip(free.budgets, bound.budgets, strict=True):
            assert mine.lower_bound <= theirs.cost * (1 + 1e-9)


def test_what_was_planned_is_what_stock_mlx_lm_loads(wide: Path, text: Path) -> None:
    plan, out = planned(wide, text), text.with_name("out")
    (chosen,) = (budget.chosen for budget in plan.budgets)
    assert len({offer.group_size for offer in chosen.values()}) > 1
    result = execute_plan(wide, out, text.with_name("plan.json"))
    model, config = stock_load(out)
    modules = dict(model.named_modules())
    for name, offer in chosen.items():
        path = module_path(name)
        layer = modules[path]
        assert (layer.bits, layer.group_size) == (offer.bits, offer.group_size)
        packing = {"bits": offer.bits, "group_size": offer.group_size}
        assert config["quantization"][path] == packing
        record = read_manifest(out).matrices[name]
        assert (record.bits, record.group_size) == (offer.bits, offer.group_size)
    tensors = tensors_of(out)
    for name, offer in chosen.items():
        own = (f"{module_path(name)}.{leaf}" for leaf in ("weight", "scales", "biases"))
        assert sum(tensors[tensor].nbytes for tensor in own) == offer.nbytes
    assert mx.array_equal(model(TOKENS), load_model(out)(TOKENS)).item()
    assert verify(out) == []
    before, after = (summarize(str(folder)) for folder in (wide, out))
    assert before.parameters == after.parameters
    assert [group.shape for group in before.groups] == [group.shape for group in after.groups]
    rows = {row for table in present_by_plan(result).lines[:1] for row in table.columns[3].cells}
    assert {*map(str, {offer.group_size for offer in chosen.values()})} == rows


def test_a_size_in_bytes_is_kept_whatever_the_groups(wide: Path, text: Path) -> None:
    size = 90_000
    planned(wide, text, budgets=[Budget("size", size)])
    out = execute_plan(wide, text.with_name("out"), text.with_name("plan.json")).out
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert 0.9 * size < written <= size


def test_the_header_of_what_stays_packed_is_counted_in_full() -> None:
    shape, size = (8, 3200), 10**6  # 100 scales in groups of 32, of 64 two digits
    m = Candidate("a.weight", shape, "BF16", 64, packed_bytes(shape, 4, 32, "BF16"))
    counted = FORMATS["mixed"].header_bytes(m, Offer.unchanged(m), size)
    assert counted >= entry_bytes(Part("a.weight", shape, "BF16", 4, 32).specs, size)


def test_a_group_size_may_be_edited_to_what_is_offered(wide: Path, text: Path) -> None:
    plan = planned(wide, text, include=["*.0.mlp.*"])
    file, out = text.with_name("plan.json"), text.with_name("out")
    offers = [o for m in plan.matrices if m.name == UP for o in m.offers if o.bits == 4]
    raw = json.loads(file.read_text())
    for offer in offers:
        raw["budgets"][0]["matrices"][UP] = {"bits": 4, "group_size": offer.group_size}
        file.write_text(json.dumps(raw))
        assert read_plan(file).budget().chosen[UP] == offer
    raw["budgets"][0]["matrices"][UP] = {"bits": 4}  # then it is the usual one
    file.write_text(json.dumps(raw))
    assert read_plan(file).budget().chosen[UP].group_size == 64
    execute_plan(wide, out, file)
    layer = dict(stock_load(out)[0].named_modules())[module_path(UP)]
    assert (layer.bits, layer.group_size) == (4, 64)
    raw["budgets"][0]["matrices"][UP] = {"bits": 4, "group_size": 48}
    file.write_text(json.dumps(raw))
    with pytest.raises(FormatError, match=r"`group_size` of .*up_proj.* must be one of .* got 48"):
        read_plan(file)
    file.write_text(json.dumps(raw | {"schema": 3}))
    with pytest.raises(FormatError, match=r"schema 3 is unknown, .* `plastic plan`"):
        read_plan(file)


def test_corrections_are_beside_backbones_of_the_largest_groups(wide: Path, text: Path) -> None:
    choices = Choices(bits=(2,), factor_bits=(8,), ranks=(4,))
    plan = planned(wide, text, "corrected", choices=choices, include=["*.0.mlp.*"])
    for m in plan.matrices:
        fitting = {size for size in GROUP_SIZES if m.matrix.shape[1] % size == 0}
        assert {o.group_size for o in m.offers if o.bits and not o.rank} == fitting
        assert {o.group_size for o in m.offers if o.rank} == {max(fitting)}


MIXTURE: Mapping[str, Choice] = {
    UP: Choice(4, group_size=32),
    DOWN: Choice(3, group_size=64),
    GATE: Choice(2, 4, 8, group_size=128),
}


@pytest.fixture
def mixture(wide: Path, make_plan: Callable[..., LossPlan], tmp_path: Path) -> Path:
    """An output with three group sizes, a correction beside one of them, and all exact bits."""
    file, out = tmp_path / "mixture.json", tmp_path / "mixture"
    make_plan(wide, file, MIXTURE)
    execute_plan(wide, out, file, exact=True)
    return out


def test_every_bit_comes_back_whatever_the_groups(mixture: Path, wide: Path) -> None:
    dense = mixture.with_name("dense")
    assert restore(mixture, dense).proved
    before, after = tensors_of(wide), tensors_of(dense)
    assert before.keys() == after.keys()
    assert all(same_bits(before[name], after[name]) for name in before)


def test_healing_keeps_every_group_size(mixture: Path, wide: Path, text: Path) -> None:
    few = Calibration(text, window=24, windows=16)
    healed = mixture.with_name("healed")
    heal(mixture, wide, healed, calibration=few, options=HealingOptions(steps=12, batch=2))
    assert verify(healed) == []
    before, after = read_manifest(mixture).matrices, read_manifest(healed).matrices
    for name, choice in MIXTURE.items():
        assert (after[name].bits, after[name].group_size) == (choice.bits, choice.group_size)
        assert after[name].relative_error != before[name].relative_error
    assert (
        stock_load(healed, trust_remote_code=True)[1]
        == stock_load(mixture, trust_remote_code=True)[1]
    )


PACKED: list[tuple[int, int, str, float]] = [
    (4, 64, "affine", 4.5),
    (4, 32, "mxfp4", 4.25),
    (4, 16, "nvfp4", 4.5),
    (8, 32, "mxfp8", 8.25),
]


@pytest.mark.parametrize(("bits", "group_size", "mode", "whole"), PACKED)
def test_a_source_that_fits_already_stays_as_it_is(
    packed_by_mlx: Make, text: Path, bits: int, group_size: int, mode: str, whole: float
) -> None:
    source, out = packed_by_mlx(bits, group_size, mode), text.with_name("out")
    budgets, few = [whole, Budget("keep", 1.0)], Choices((2,), group_sizes=(64,))
    plan = planned(source, text, budgets=budgets, choices=few)
    for budget in plan.budgets:
        assert budget.mix == {"source": len(plan.matrices)}
        assert (budget.cost, budget.lower_bound, budget.bits_per_weight) == (0.0, 0.0, whole)
    execute_plan(source, out, text.with_name("plan.json"), budget=whole)
    before, after = tensors_of(source), tensors_of(out)
    assert before.keys() == after.keys()
    assert all(same_bits(before[name], after[name]) for name in before)
    assert verify(out) == []
    first, second = (stock_load(folder)[0](TOKENS) for folder in (source, out))
    assert mx.array_equal(first, second).item()


def test_of_a_source_that_nearly_fits_most_stays_as_it_is(packed_by_mlx: Make, text: Path) -> None:
    source, out = packed_by_mlx(4, 64), text.with_name("out")
    plan = planned(source, text, budgets=[4.25], choices=Choices((2, 3, 4)))
    (tight,) = plan.budgets
    kept = [m.matrix for m in plan.matrices if tight.chosen[m.name].bits is None]
    assert tight.weights / 2 < sum(m.weights for m in kept) < tight.weights
    assert tight.bits_per_weight <= 4.25
    execute_plan(source, out, text.with_name("plan.json"))
    before, after = tensors_of(source), tensors_of(out)
    assert all(same_bits(before[m.name], after[m.name]) for m in kept)
    modules = dict(stock_load(out)[0].named_modules())
    for name, offer in tight.chosen.items():
        layer = modules[module_path(name)]
        expected = (offer.bits or 4, offer.group_size or 64)
        assert (layer.bits, layer.group_size) == expected
