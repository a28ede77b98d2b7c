"""A folder is dialled down and up: leading components, the same bits, one line for what is bad."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from plastic_core.files import (
    BusyError,
    FolderLock,
    FormatError,
    load_safetensors,
    partial_of,
    sha256_file,
    write_json,
)
from plastic_core.linalg import to_numpy
from plastic_core.testing import same_bits
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.compression.verification import verify
from plastic_export.dialling.writing import dial
from plastic_export.evaluation.output_check import FailedCheckError
from plastic_export.format.layout import Contents
from plastic_export.format.stored import StoredMatrices, Terms
from plastic_export.healing.heal_folder import heal
from plastic_export.healing.loop import HealingOptions
from plastic_export.plan.budgets import Budget
from plastic_export.plan.offers import Choice
from plastic_runtime.dialling import MANIFEST, SLEEP, read_manifest, sealed

BLOCK = "model.layers.0."
RUN = "plastic_export.evaluation.output_check.logits_by_blocks"
MakePlan = Callable[..., Any]


def files_of(folder: Path) -> dict[str, str]:
    """Digests of all files but the card, which says what was checked."""
    return {p.name: sha256_file(p) for p in folder.iterdir() if p.name != "README.md"}


def terms(folder: Path, name: str, *, asleep: bool = False) -> Terms | None:
    """What is stored of a matrix; None where it is as it was in the source."""
    parts = Contents.of_manifest(read_manifest(folder)).parts[name]
    with StoredMatrices(folder) as stored:
        return stored.terms(parts, asleep=asleep) if parts.present else None


def joined(found: Terms) -> tuple[Any, Any]:
    """All components."""
    U, V = zip(*found.products, strict=True)
    return np.concatenate(U, axis=1), np.concatenate(V)


def middle(folder: Path) -> Budget:
    """A size in the middle of what a folder can be dialled to."""
    with pytest.raises(ValueError, match="at least") as caught:
        dial(folder, folder.with_name("never"), Budget("size", 1))
    least, most = (
        int(n.replace(",", "")) for n in re.findall(r"([\d,]+) bytes", str(caught.value))[:2]
    )
    return Budget("size", (least + most) // 2)


def test_what_stays_is_the_leading_components_to_the_bit(folder: Path, tmp_path: Path) -> None:
    budget = middle(folder)
    result = dial(folder, tmp_path / "small", budget)
    assert budget.value - 400 < result.model_bytes <= budget.value
    assert verify(tmp_path / "small") == []
    assert result.turned
    assert not (tmp_path / "small" / SLEEP).exists()
    for record in result.matrices:
        before = terms(folder, record.name, asleep=True)
        after, r = terms(tmp_path / "small", record.name), record.rank
        if before is None or after is None:
            assert before is after
            continue
        assert (before.backbone is None) == (after.backbone is None)
        if before.backbone is not None:
            assert np.array_equal(before.backbone, after.backbone)
        if r:
            (U, V), (was_U, was_V) = joined(after), joined(before)
            assert np.array_equal(U, was_U[:, :r])
            assert np.array_equal(V, was_V[:r])
        else:
            assert not after.products


def test_what_was_parked_wakes_to_the_same_files(corrected: Path, tmp_path: Path) -> None:
    small = dial(corrected, tmp_path / "small", middle(corrected), park=True)
    assert small.sleep_bytes
    assert verify(tmp_path / "small") == []
    dial(tmp_path / "small", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(corrected)


def test_the_way_to_a_size_does_not_matter(folder: Path, tmp_path: Path) -> None:
    small = middle(folder)
    dial(folder, tmp_path / "small", small, park=True)
    for start, end in ((folder, "straight"), (tmp_path / "small", "around")):
        dial(start, tmp_path / end, small._replace(value=small.value + 900), park=True)
    assert files_of(tmp_path / "straight") == files_of(tmp_path / "around")


def test_a_strategy_chooses_as_it_did_at_first(
    checkpoint_folder: Path, factored: Path, tmp_path: Path
) -> None:
    asked = compress(checkpoint_folder, tmp_path / "asked", keep=0.3).matrices
    turned = dial(factored, tmp_path / "turned", Budget("keep", 0.3), park=True).matrices
    assert [(r.name, r.rank, r.parked) for r in turned] == [
        (r.name, r.rank, r.parked) for r in asked
    ]
    assert (
        load_safetensors(tmp_path / "asked" / SLEEP).keys()
        == load_safetensors(tmp_path / "turned" / SLEEP).keys()
    )
    for file in (SLEEP, "model.safetensors", "config.json"):
        assert sha256_file(tmp_path / "asked" / file) == sha256_file(tmp_path / "turned" / file)


def test_certificates_follow(folder: Path, tmp_path: Path, checkpoint_folder: Path) -> None:
    source = folder.with_name("biased" if folder.name == "corrected" else checkpoint_folder.name)
    result = dial(folder, tmp_path / "small", middle(folder))
    with open_checkpoint(source) as checkpoint, StoredMatrices(tmp_path / "small") as stored:
        contents = Contents.of_manifest(read_manifest(tmp_path / "small"))
        for r in result.matrices:
            parts = contents.parts[r.name]
            if not parts.present:
                continue
            W = checkpoint.matrix(r.name)
            E = W - stored.terms(parts, asleep=False).summed()
            assert r.relative_error == pytest.approx(
                np.linalg.norm(E) / np.linalg.norm(W), rel=0.01
            )
            spectral = np.linalg.norm(E, 2) / np.linalg.norm(W, 2)
            assert spectral * 0.99 <= r.spectral_error <= 2 * spectral
            assert r.restored_error == r.relative_error


def test_a_healed_folder_is_dialled_by_its_prices_with_errors_of_its_own(
    readable: Path, text: Path, make_plan: MakePlan, choices: dict[str, Choice], tmp_path: Path
) -> None:
    make_plan(readable, tmp_path / "plan.json", choices)
    out = execute_plan(readable, tmp_path / "out", tmp_path / "plan.json").out
    few = Calibration(text, window=24, windows=8)
    options = HealingOptions(steps=4, learning_rate=0.02)
    done = heal(out, readable, tmp_path / "healed", calibration=few, options=options)
    assert done.step > 0  # else nothing is other than before
    before, after = (read_manifest(f).matrices for f in (out, done.out))
    assert any(after[name].curve != r.curve for name, r in before.items() if r.curve)
    with open_checkpoint(readable) as checkpoint, StoredMatrices(done.out) as stored:
        contents = Contents.of_manifest(read_manifest(done.out))
        for r in after.values():
            if r.curve is None:
                continue
            assert r.curve.predicted_kl == before[r.name].curve.predicted_kl
            W, found = checkpoint.matrix(r.name), stored.terms(contents.parts[r.name], asleep=True)
            U, V = joined(found)
            E = W if found.backbone is None else W - found.backbone
            errors = [np.linalg.norm(E - U[:, :k] @ V[:k]) for k in r.curve.ranks]
            np.testing.assert_allclose(
                r.curve.relative_error, errors / np.linalg.norm(W), rtol=1e-4, atol=1e-6
            )
            assert r.curve.spectral_error == pytest.approx(r.spectral_error, rel=0.02)
    small = dial(done.out, tmp_path / "small", middle(out), park=True)
    assert verify(small.dest) == []
    assert small.turned
    assert files_of(dial(small.dest, tmp_path / "back").dest) == files_of(done.out)


def test_what_is_gone_does_not_come_back(folder: Path, tmp_path: Path) -> None:
    small = dial(folder, tmp_path / "small", middle(folder))
    full = dial(tmp_path / "small", tmp_path / "full")
    assert [r.rank for r in full.matrices] == [r.rank for r in small.matrices]
    asked = middle(folder)._replace(value=small.model_bytes + 1000)
    with pytest.raises(ValueError, match=r"at most .*, with all that is stored"):
        dial(tmp_path / "small", tmp_path / "larger", asked)
    assert read_manifest(tmp_path / "full").options["dial"]["lost"]


@pytest.mark.parametrize("strategy", ["stable", "activation"])
def test_all_that_sleeps_can_be_awake(
    readable: Path, text: Path, tmp_path: Path, strategy: str
) -> None:
    calibration = Calibration(text, window=24, windows=8) if strategy == "activation" else None
    out = tmp_path / "out"
    compress(readable, out, keep=0.6, strategy=strategy, calibration=calibration)
    half = dial(out, tmp_path / "half", Budget("keep", 0.4), park=True).dest
    for folder in (out, half):
        result = dial(folder, tmp_path / f"{folder.name}-full")
        assert verify(result.dest) == []
        for r in result.matrices:
            assert (r.rank, r.parked) == (0 if r.is_unchanged else min(r.shape), 0)
            assert r.relative_error == pytest.approx(r.restored_error, abs=1e-9)
            assert r.retained_energy == pytest.approx(1)


def test_formats_without_components_are_refused(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    make_plan(checkpoint_folder, tmp_path / "p.json", {"lm_head.weight": Choice(4)}, "mixed")
    execute_plan(checkpoint_folder, tmp_path / "mixed", tmp_path / "p.json")
    with pytest.raises(
        FormatError, match=r"'mixed' has no components.*corrected and factored have"
    ):
        dial(tmp_path / "mixed", tmp_path / "small", Budget("keep", 0.3))
    make_plan(checkpoint_folder, tmp_path / "q.json", {"lm_head.weight": Choice(4)})
    execute_plan(checkpoint_folder, tmp_path / "none", tmp_path / "q.json")
    with pytest.raises(FormatError, match="none of its matrices has components"):
        dial(tmp_path / "none", tmp_path / "small", Budget("keep", 0.3))


def of_schema_3(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    for record in raw["matrices"]:
        del record["curve"], record["spectrum"]
    write_json(folder / MANIFEST, sealed(raw | {"schema": 3}))


def test_older_folders_are_read_and_say_how_to_get_prices(folder: Path, tmp_path: Path) -> None:
    before = [replace(r, curve=None, spectrum="") for r in read_manifest(folder).matrices.values()]
    of_schema_3(folder)
    assert list(read_manifest(folder).matrices.values()) == before
    with pytest.raises(
        FormatError, match=r"no prices of the components.*compress its source again"
    ):
        dial(folder, tmp_path / "small", Budget("keep", 0.3))


def test_bad_places_are_refused(corrected: Path, tmp_path: Path) -> None:
    for dest in (corrected, corrected / "inside", corrected / "a" / "b"):
        with pytest.raises(FormatError, match=r"it lies in .*, the folder that is dialled"):
            dial(corrected, dest)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(FormatError, match=r"not empty and holds no plastic\.json"):
        dial(corrected, tmp_path / "taken")
    for where, start in ((corrected, corrected), (tmp_path / "dest", corrected)):
        lock = FolderLock(partial_of(where))
        code = (
            "from plastic_export import dial\nfrom plastic_core.files import BusyError\n"
            f"try: dial({str(start)!r}, {str(tmp_path / 'dest')!r})\n"
            "except BusyError as error: print(error)"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "in use by process" in ended.stdout, ended.stderr
        lock.release()
        shutil.rmtree(partial_of(where))


def test_a_folder_that_is_not_there_yet_is_being_written(tmp_path: Path) -> None:
    lock = FolderLock(partial_of(tmp_path / "out"))
    with pytest.raises(BusyError):
        dial(tmp_path / "out", tmp_path / "dest")
    lock.release()
    with pytest.raises(FormatError, match="missing; name a folder that `plastic compress` wrote"):
        dial(tmp_path / "out", tmp_path / "dest")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", SLEEP])
def test_a_folder_that_was_changed_is_refused(factored: Path, tmp_path: Path, file: str) -> None:
    data = bytearray((factored / file).read_bytes())
    data[-20] ^= 1
    (factored / file).write_bytes(data)
    with pytest.raises(FormatError, match="not those that were written"):
        dial(factored, tmp_path / "small", Budget("keep", 0.3))
    assert not (tmp_path / "small").exists()


def test_what_does_not_run_is_not_published(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RUN, lambda folder, tokens: mx.full((*tokens.shape, 80), float("nan")))
    with pytest.raises(FailedCheckError, match="not finite"):
        dial(corrected, tmp_path / "small")
    assert [p.name for p in tmp_path.iterdir() if "small" in p.name] == []


def test_a_replaced_folder_stays_until_the_new_one_is_whole(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial(corrected, tmp_path / "small", middle(corrected))
    before = files_of(tmp_path / "small")
    with pytest.raises(FormatError, match="not empty"):
        dial(corrected, tmp_path / "small")
    monkeypatch.setattr(RUN, lambda folder, tokens: mx.full((*tokens.shape, 80), float("nan")))
    with pytest.raises(FailedCheckError):
        dial(corrected, tmp_path / "small", force=True)
    assert files_of(tmp_path / "small") == before
    monkeypatch.undo()
    dial(corrected, tmp_path / "small", force=True)
    assert files_of(tmp_path / "small") == files_of(corrected)


def test_codes_are_never_decoded(corrected: Path, tmp_path: Path) -> None:
    dial(corrected, tmp_path / "small", middle(corrected), park=True)
    before = load_safetensors(corrected / "model.safetensors")
    model, asleep = (
        load_safetensors(tmp_path / "small" / file) for file in ("model.safetensors", SLEEP)
    )
    path = f"{BLOCK}self_attn.q_proj"
    for side in "uv":
        for leaf in ("weight", "scales", "biases"):
            awake, parked = (
                model.get(f"{path}.{side}.{leaf}"),
                asleep.get(f"{path}.sleep.{side}.{leaf}"),
            )
            rows = [to_numpy(a.view(mx.uint8)) for a in (awake, parked) if a is not None]
            together = mx.array(np.concatenate(rows)).view(before[f"{path}.{side}.{leaf}"].dtype)
            assert same_bits(together, before[f"{path}.{side}.{leaf}"])
