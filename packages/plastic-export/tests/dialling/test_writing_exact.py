"""What gives back every bit of the source goes along with a folder that is dialled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plastic_core.files import FormatError, sha256_file
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.compression.restoration import restore
from plastic_export.compression.verification import verify
from plastic_export.dialling.writing import Dialled, dial
from plastic_export.exact.exactness import EXACT, Exact
from plastic_export.healing.heal_folder import heal
from plastic_export.healing.loop import HealingOptions
from plastic_export.plan.budgets import Budget
from plastic_export.plan.offers import Choice
from plastic_export.reporting.dial import present_dialled
from plastic_runtime.dialling import SLEEP, read_manifest

MakePlan = Callable[..., Any]
BIAS = "model.layers.0.self_attn.q_proj.bias"


@pytest.fixture(params=["corrected", "factored"])
def exact(
    request: pytest.FixtureRequest,
    with_biases: Path,
    make_plan: MakePlan,
    choices: dict[str, Choice],
    tmp_path: Path,
) -> Path:
    """A folder that gives back every bit of ``with_biases``."""
    out, plan = tmp_path / "exact", tmp_path / "plan.json"
    if request.param == "factored":
        return compress(with_biases, out, keep=0.6, exact=True).out
    make_plan(with_biases, plan, choices)
    return execute_plan(with_biases, out, plan, exact=True).out


def ends(folder: Path) -> tuple[float, float]:
    """The least and the largest size, in bits per weight."""
    with pytest.raises(ValueError, match="at least") as caught:
        dial(folder, folder.with_name("never"), Budget("bits_per_weight", 0.001))
    words = str(caught.value).replace(",", "").split()
    least, most = (float(words[words.index(end) + 1]) for end in ("least", "most"))
    return least, most


def check_every_bit(source: Path, out: Path, dest: Path) -> None:
    """Compare all tensors of a source with what is restored, as integers."""
    assert verify(out) == []
    assert restore(out, dest).proved
    with open_checkpoint(source) as before, open_checkpoint(dest) as after:
        assert before.tensors.keys() == after.tensors.keys()
        for name, info in before.tensors.items():
            found = after.tensors[name]
            assert (found.dtype, found.shape) == (info.dtype, info.shape)
            assert np.array_equal(before.raw(name), after.raw(name))


def last_line(result: Dialled) -> str:
    """What is said of it."""
    lines = [str(line) for line in present_dialled(result).lines]
    (found,) = [line for line in lines if line.startswith("exact ")]
    return found


def test_every_bit_comes_back_from_any_size_with_what_is_parked(
    exact: Path, with_biases: Path, tmp_path: Path
) -> None:
    least, most = ends(exact)
    place = exact
    for share in (0.5, 0.0, 0.3, 1.0, 0.0):
        size = Budget("bits_per_weight", least + share * (most - least))
        dest = tmp_path / f"{place.name}-{share}"
        result = dial(place, dest, size, park=True, check=False)
        assert result.exact_bytes == (dest / EXACT).stat().st_size
        assert "gives back every bit" in last_line(result)
        check_every_bit(with_biases, dest, tmp_path / f"{dest.name}-dense")
        place = dest
    dial(place, tmp_path / "back", Budget("bits_per_weight", read_bits(exact)), park=True)
    assert sha256_file(tmp_path / "back" / EXACT) == sha256_file(exact / EXACT)
    full = dial(place, tmp_path / "full", check=False)
    assert not (full.dest / SLEEP).exists()
    assert read_manifest(full.dest).options["exact"]
    check_every_bit(with_biases, full.dest, tmp_path / "full-dense")


def read_bits(folder: Path) -> float:
    """The size of a folder, in bits per weight."""
    records = read_manifest(folder).matrices.values()
    weights = sum(r.shape[0] * r.shape[1] for r in records)
    return 8 * sum(r.stored_bytes for r in records) / weights


def test_a_tensor_that_moves_is_found_under_its_new_name(
    with_biases: Path, make_plan: MakePlan, choices: dict[str, Choice], tmp_path: Path
) -> None:
    make_plan(with_biases, tmp_path / "plan.json", choices)
    out = execute_plan(with_biases, tmp_path / "out", tmp_path / "plan.json", exact=True).out
    small = dial(out, tmp_path / "small", Budget("bits_per_weight", ends(out)[0]), park=True).dest
    names = []
    for folder in (out, small):
        with Exact(folder) as kept:
            names.append(kept.kept[BIAS].copied)
    assert names == [BIAS.replace(".bias", ".base.bias"), BIAS]


def test_where_components_are_gone_it_is_left_out_and_that_is_said(
    exact: Path, tmp_path: Path
) -> None:
    least, most = ends(exact)
    result = dial(exact, tmp_path / "small", Budget("bits_per_weight", (least + most) / 2))
    assert (result.exact_bytes, result.is_exact_lost) == (0, True)
    assert "left out with what was cut; with --park" in last_line(result)
    assert not (result.dest / EXACT).exists()
    manifest = read_manifest(result.dest)
    assert not manifest.options["exact"]
    assert EXACT not in manifest.files
    if manifest.format == "corrected":
        with pytest.raises(FormatError, match=r"cut without --park; name what it was dialled from"):
            restore(result.dest, tmp_path / "back")
    else:
        assert not restore(result.dest, tmp_path / "back").proved
    again = dial(result.dest, tmp_path / "again", park=True)
    assert (again.exact_bytes, again.is_exact_lost) == (0, False)


def test_nothing_is_lost_where_everything_is_awake(
    exact: Path, with_biases: Path, tmp_path: Path
) -> None:
    full = dial(exact, tmp_path / "full")
    assert full.exact_bytes == (exact / EXACT).stat().st_size
    check_every_bit(with_biases, full.dest, tmp_path / "dense")


def test_what_was_healed_and_dialled_is_exact_too(
    readable: Path, text: Path, make_plan: MakePlan, choices: dict[str, Choice], tmp_path: Path
) -> None:
    make_plan(readable, tmp_path / "plan.json", choices)
    out = execute_plan(readable, tmp_path / "out", tmp_path / "plan.json", exact=True).out
    half = sum(ends(out)) / 2
    small = dial(out, tmp_path / "small", Budget("bits_per_weight", half), park=True).dest
    few = Calibration(text, window=24, windows=8)
    options = HealingOptions(steps=4, learning_rate=0.02)
    healed = heal(small, readable, tmp_path / "healed", calibration=few, options=options).out
    large = dial(healed, tmp_path / "large", check=False).dest
    for folder in (small, healed, large):
        check_every_bit(readable, folder, tmp_path / f"{folder.name}-dense")
