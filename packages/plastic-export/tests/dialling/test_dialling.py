"""A size at load, in a loaded model and written to a folder: the same bits, whatever the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as stock_load
from plastic_core.files import FormatError, array_bytes
from plastic_export.compression.by_plan import execute_plan
from plastic_export.dialling.writing import dial
from plastic_export.model.load import load_model
from plastic_export.plan.budgets import Budget
from plastic_export.plan.offers import Choice
from plastic_runtime import Dial
from plastic_runtime.dialling import read_manifest

TOKENS = mx.array([[3, 5, 70, 7]])


def bits_of(model: nn.Module) -> dict[str, bytes]:
    """Every parameter as bytes."""
    return {k: array_bytes(v).tobytes() for k, v in tree_flatten(model.parameters())}


def loaded(folder: Path, **size: Any) -> nn.Module:
    """What stock mlx-lm loads, at another size where one is given."""
    model, _ = stock_load(
        folder, trust_remote_code=True, model_config={"plastic_dial": size} if size else None
    )
    return model


def budgets(folder: Path, count: int = 5) -> list[float]:
    """Sizes of a folder in bits per weight, from the least to the largest."""
    with pytest.raises(ValueError, match="at least") as caught:
        dial(folder, folder.with_name("never"), Budget("bits_per_weight", 0.001))
    words = str(caught.value).replace(",", "").split()
    least, most = (float(words[words.index(end) + 1]) for end in ("least", "most"))
    return [least + i * (most - least) / (count - 1) for i in range(count)]


def test_a_size_at_load_is_the_folder_that_dial_writes(folder: Path) -> None:
    for number, bits in enumerate(budgets(folder)):
        dest = folder.with_name(f"dest-{number}")
        dial(folder, dest, Budget("bits_per_weight", bits), check=False, park=True)
        written, at_load = loaded(dest), loaded(folder, bits_per_weight=bits)
        assert bits_of(at_load) == bits_of(written)
        assert [type(m).__name__ for m in at_load.modules()] == [
            type(m).__name__ for m in written.modules()
        ]
        assert mx.array_equal(at_load(TOKENS), written(TOKENS)).item()
        assert bits_of(loaded(dest, fraction=1.0)) == bits_of(loaded(folder, fraction=1.0))


def test_a_live_model_is_the_one_that_is_loaded_at_that_size(folder: Path) -> None:
    model = loaded(folder)
    start = bits_of(model)
    with Dial(model, folder) as live:
        now = live.nbytes
        for stop in [*live.curve(5), *reversed(live.curve(4))]:
            assert live.to(bytes=stop.asked) == stop.nbytes
            at_load = loaded(folder, bytes=stop.asked)
            assert bits_of(model) == bits_of(at_load)
            assert mx.array_equal(model(TOKENS), at_load(TOKENS)).item()
            assert sum(v.nbytes for _, v in tree_flatten(model.parameters())) == stop.nbytes
        live.to(bytes=now)
    assert bits_of(model) == start


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=10,
)
@given(turns=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_no_bit_is_lost_on_any_way(folder: Path, turns: list[float]) -> None:
    model = load_model(folder)
    start = bits_of(model)
    with Dial(model, folder) as live:
        now = live.nbytes
        for turn in turns:
            live.to(bytes=round(live.least + turn * (live.largest - live.least)))
        live.to(bytes=now)
    assert bits_of(model) == start


def test_model_config_goes_before_the_variable_and_that_before_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nbytes(**size: Any) -> int:
        return sum(v.nbytes for _, v in tree_flatten(loaded(folder, **size).parameters()))

    whole = nbytes()
    with Dial(loaded(folder), folder) as live:
        least, largest = live.sizes
    middle = (least + largest) // 2
    config = folder / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"plastic_dial": {"bytes": least}})
    )
    assert nbytes() == least != whole
    monkeypatch.setenv("PLASTIC_DIAL", f"bytes={middle}")
    assert least < nbytes() <= middle
    assert nbytes(bytes=largest) == largest
    none, _ = stock_load(folder, trust_remote_code=True, model_config={"plastic_dial": None})
    assert sum(v.nbytes for _, v in tree_flatten(none.parameters())) == whole
    assert bits_of(load_model(folder)) == bits_of(none)
    for bad in ("0.5", "fraction=", "fraction=nan", "speed=3", "fraction=7"):
        monkeypatch.setenv("PLASTIC_DIAL", bad)
        with pytest.raises(ValueError, match=r"size|`fraction`") as caught:
            loaded(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [5, True, [0.9]])
def test_a_size_that_is_no_entry_is_refused(factored: Path, size: Any) -> None:
    with pytest.raises(TypeError, match=r'a size is an entry such as \{"fraction": 0\.5\}, got'):
        stock_load(factored, trust_remote_code=True, model_config={"plastic_dial": size})


def test_the_configuration_says_what_was_loaded(corrected: Path) -> None:
    with Dial(loaded(corrected), corrected) as live:
        size = {"bytes": live.least}
    _, config = stock_load(corrected, trust_remote_code=True, model_config={"plastic_dial": size})
    own = config["plastic"]["corrected"]
    assert all(entry["rank"] == 1 and not entry["backbone"] for entry in own.values())
    assert set(config["plastic"]["ranks"].values()) == {1}
    records = read_manifest(corrected).matrices.values()
    backbones = {r.name.removesuffix(".weight") for r in records if r.bits is not None}
    packed = {path for path, entry in config["quantization"].items() if isinstance(entry, dict)}
    assert {path for path in packed if not path.endswith((".u", ".v"))} == backbones


def test_where_nothing_is_awake_a_layer_can_only_be_woken_on_disk(
    checkpoint_folder: Path, make_plan: Callable[..., Any], tmp_path: Path
) -> None:
    name, plan = "model.layers.0.mlp.up_proj.weight", tmp_path / "plan.json"
    make_plan(checkpoint_folder, plan, {name: Choice(2, 4, 4)})
    out = execute_plan(checkpoint_folder, tmp_path / "out", plan).out
    dest = dial(out, tmp_path / "dest", Budget("size", least_size(out)), park=True).dest
    assert not (dest / "plastic_model.py").exists()
    model = load_model(dest)
    before = bits_of(model)
    with Dial(model, dest) as live, pytest.raises(FormatError, match="dial OUT NEW --full"):
        live.to(fraction=1.0)
    assert bits_of(model) == before


def least_size(folder: Path) -> float:
    """The least size of the files of a folder."""
    with pytest.raises(ValueError, match="at least") as caught:
        dial(folder, folder.with_name("never"), Budget("size", 1))
    return float(str(caught.value).partition("at least ")[2].split(" bytes")[0].replace(",", ""))
