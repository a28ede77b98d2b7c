"""A loaded model is turned to every size of its folder, and every bit is that of the folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from plastic_core.files import (
    BusyError,
    FolderLock,
    FormatError,
    array_bytes,
    load_safetensors,
    partial_of,
)
from plastic_runtime import Dial
from plastic_runtime.dialling import read_manifest

Load = Callable[[Path], nn.Module]


def bits_of(model: nn.Module) -> dict[str, bytes]:
    """Every parameter as bytes."""
    return {k: array_bytes(v).tobytes() for k, v in tree_flatten(model.parameters())}


def all_components(folder: Path) -> dict[str, mx.array]:
    """Both factors of every matrix with everything awake, from the files."""
    awake, asleep = (load_safetensors(folder / f"{n}.safetensors") for n in ("model", "sleep"))
    found = {}
    for name in read_manifest(folder).matrices:
        path = name.removesuffix(".weight")
        u, v = awake[f"{path}.u.weight"], awake[f"{path}.v.weight"]
        found[f"{path}.u.weight"] = mx.concatenate([u, asleep[f"{path}.sleep.u"].T], axis=1)
        found[f"{path}.v.weight"] = mx.concatenate([v, asleep[f"{path}.sleep.v"]])
    return found


def test_every_size_holds_the_leading_components_bit_for_bit(
    thin_folder: Path, load_thin: Load
) -> None:
    model, whole = load_thin(thin_folder), all_components(thin_folder)
    random = np.random.default_rng(0)
    with Dial(model, thin_folder) as dial:
        assert dial.nbytes == sum(v.nbytes for _, v in tree_flatten(model.parameters()))
        for size in random.integers(dial.least, dial.largest + 1, 1000).tolist():
            assert dial.to(bytes=size) <= size
            held = dict(tree_flatten(model.parameters()))
            assert dial.nbytes == sum(v.nbytes for v in held.values())
            for name, every in whole.items():
                path, side = name.removesuffix(".weight").rsplit(".", 1)
                rank = dial.ranks[f"{path}.weight"]
                leading = every[:, :rank] if side == "u" else every[:rank]
                assert array_bytes(held[name]).tobytes() == array_bytes(leading).tobytes()


def test_the_way_to_a_size_does_not_matter(thin_folder: Path, load_thin: Load) -> None:
    model = load_thin(thin_folder)
    start = bits_of(model)
    with Dial(model, thin_folder) as dial:
        before, there = dial.nbytes, dial.to(fraction=0.6)
        once = bits_of(model)
        for fraction in (1.0, 0.5, 0.9):
            dial.to(fraction=fraction)
        assert dial.to(fraction=0.6) == there
        assert bits_of(model) == once != start
        dial.to(bytes=before)
    assert bits_of(model) == start


def test_a_compiled_function_sees_it(thin_folder: Path, load_thin: Load) -> None:
    model, x = load_thin(thin_folder), mx.ones((1, 8), mx.bfloat16)
    compiled = mx.compile(model, inputs=model.state)
    with Dial(model, thin_folder) as dial:
        for fraction in (1.0, 0.5, 0.8, 1.0):
            dial.to(fraction=fraction)
            assert mx.allclose(compiled(x), model(x), rtol=2e-2).item()


def test_the_curve_goes_down_from_the_least_to_the_largest(
    thin_folder: Path, load_thin: Load
) -> None:
    model = load_thin(thin_folder)
    with Dial(model, thin_folder) as dial:
        curve = dial.curve()
        assert (curve[0].nbytes, curve[-1].nbytes) == dial.sizes == (dial.least, dial.largest)
        assert (curve[-1].fraction, curve[-1].price) == (1.0, 0.0)
        prices = [point.price for point in curve]
        assert prices == sorted(prices, reverse=True)
        assert prices[0] > 0
        assert dial.priced_in == "energy asleep"
        for point in curve:
            assert dial.to(bytes=point.asked) == point.nbytes
            assert dial.ranks == point.ranks
        with pytest.raises(ValueError, match="`points` must be at least 2, got 1"):
            dial.curve(1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bytes": 7}, "`bytes` must be at least 224, .* and at most 1,344, .* got 7"),
        ({"bytes": 9999}, "`bytes` must be at least 224, .* and at most 1,344, .* got 9,999"),
        ({"fraction": 0.1}, r"must be at least 0.1667 \(224 bytes\).* most 1 \(1,344 bytes\)"),
        ({"fraction": 1.01}, "at most 1 .* got 1.01"),
        ({"fraction": float("nan")}, "got nan"),
        ({"bytes": float("inf")}, "got inf"),
        ({"bytes": 500, "fraction": 0.5}, "exactly one of .* got `bytes`, `fraction`"),
        ({}, "exactly one of .* got nothing"),
    ],
)
def test_a_bad_size_is_refused_in_one_line(
    thin_folder: Path, load_thin: Load, asked: dict[str, Any], message: str
) -> None:
    model = load_thin(thin_folder)
    before = bits_of(model)
    with Dial(model, thin_folder) as dial:
        with pytest.raises(ValueError, match=message) as caught:
            dial.to(**asked)
        assert "\n" not in str(caught.value)
        with pytest.raises(TypeError, match="`fraction` must be a number, got 'half'"):
            dial.to(fraction="half")  # type: ignore[arg-type]
    assert bits_of(model) == before


def test_an_end_that_is_named_can_be_asked_for(thin_folder: Path, load_thin: Load) -> None:
    model = load_thin(thin_folder)
    with Dial(model, thin_folder) as dial:
        with pytest.raises(ValueError, match="`fraction`") as caught:
            dial.to(fraction=0.01)
        (least,) = re.findall(r"at least ([\d.]+)", str(caught.value))
        assert dial.to(fraction=float(least)) == dial.least


def broken_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not one")


def cut_short(folder: Path) -> None:
    file = folder / "sleep.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def grown(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "sleep.safetensors")


def without_manifest(folder: Path) -> None:
    (folder / "plastic.json").unlink()


def edited_manifest(folder: Path) -> None:
    file = folder / "plastic.json"
    file.write_text(file.read_text().replace('"energy"', '"stable"'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_header, "model.safetensors: .*copy or download"),
        (cut_short, "sleep.safetensors: .*copy"),
        (grown, "sleep.safetensors: it has .* bytes, and plastic.json names .* bytes; copy"),
        (without_manifest, "plastic.json: missing; name a folder that `plastic compress` wrote"),
        (edited_manifest, "plastic.json: its content is not what was written; copy it again"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(
    thin_folder: Path, load_thin: Load, spoil: Callable[[Path], None], message: str
) -> None:
    model = load_thin(thin_folder)
    spoil(thin_folder)
    with pytest.raises(FormatError, match=message) as caught:
        Dial(model, thin_folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_prices_or_components_is_refused(
    tmp_path: Path, thin_folder: Path, load_thin: Load, make_thin: Callable[..., Path]
) -> None:
    model, manifest = load_thin(thin_folder), read_manifest(thin_folder)
    records = [vars(r) | {"spectrum": ""} for r in manifest.matrices.values()]
    healed = make_thin(tmp_path / "healed", matrices=records)
    with pytest.raises(FormatError, match=r"it holds no prices .* an older version wrote"):
        Dial(model, healed)
    mixed = make_thin(tmp_path / "mixed", options={"format": "mixed"})
    with pytest.raises(FormatError, match=r"'mixed' has no components .* corrected and factored"):
        Dial(model, mixed)
    bare = [vars(r) | {"rank": 0, "parked": 0} for r in manifest.matrices.values()]
    with pytest.raises(FormatError, match="none of its matrices has components"):
        Dial(model, make_thin(tmp_path / "bare", matrices=bare))


def test_a_folder_that_is_being_written_is_refused(thin_folder: Path, load_thin: Load) -> None:
    lock = FolderLock(partial_of(thin_folder))
    try:
        with pytest.raises(BusyError, match="in use by process"):
            Dial(load_thin(thin_folder), thin_folder)
    finally:
        lock.release()


def test_a_model_of_another_folder_is_refused(thin_folder: Path, load_thin: Load) -> None:
    model = load_thin(thin_folder)
    model.set_dtype(mx.float32)
    with pytest.raises(FormatError, match=r"'block.0.up' has other numbers in 'v'; load it with"):
        Dial(model, thin_folder)
    with pytest.raises(FormatError, match=r"its layer 'block.0.up' is not there"):
        Dial(nn.Sequential(nn.Linear(2, 2)), thin_folder)


def test_what_cannot_be_read_leaves_the_model_as_it_was(thin_folder: Path, load_thin: Load) -> None:
    model = load_thin(thin_folder)
    with Dial(model, thin_folder) as dial:
        dial.to(bytes=dial.least)
        before, nbytes = bits_of(model), dial.nbytes
        file = thin_folder / "sleep.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(FormatError, match=r"sleep\.safetensors: it changed while it was"):
            dial.to(fraction=1.0)
        assert (bits_of(model), dial.nbytes) == (before, nbytes)
        file.unlink()


def test_a_folder_that_is_replaced_meanwhile_is_still_read(
    tmp_path: Path, thin_folder: Path, load_thin: Load
) -> None:
    model, whole = load_thin(thin_folder), all_components(thin_folder)
    with Dial(model, thin_folder) as dial:
        thin_folder.rename(tmp_path / "replaced")
        shutil.rmtree(tmp_path / "replaced")
        dial.to(fraction=1.0)
    assert all(bits_of(model)[name] == array_bytes(a).tobytes() for name, a in whole.items())


def test_without_what_sleeps_it_is_dialled_by_what_is_awake(
    thin_folder: Path, load_thin: Load
) -> None:
    (thin_folder / "sleep.safetensors").unlink()
    model = load_thin(thin_folder)
    before = bits_of(model)
    with Dial(model, thin_folder) as dial:
        assert dial.largest == dial.nbytes
        assert dial.to(fraction=0.7) < dial.to(fraction=1.0)
    assert bits_of(model) == before
