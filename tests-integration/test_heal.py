"""Healing a trained checkpoint in every format: better elsewhere too, same bytes, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.convert import convert
from plastic_core.files import array_bytes
from plastic_export import (
    BitsPlan,
    Calibration,
    Compressed,
    FormatError,
    HealingOptions,
    compress,
    evaluate,
    heal,
    load_safetensors,
    read_manifest,
    restore,
    verify,
)
from plastic_export.format import PLAN_FORMATS
from zoo.building import build_checkpoint
from zoo.running import command

T = TypeVar("T")
Run = Callable[..., tuple[int, str, str]]
SHORT = HealingOptions(steps=6, batch=2)


@pytest.fixture(scope="module")
def text(calibration: Path) -> Calibration:
    return Calibration(calibration, window=64, windows=64)


@pytest.fixture(scope="module")
def rounded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mlx-lm itself makes of it, embedding and head included."""
    out = tmp_path_factory.mktemp("rounded") / "rounded"
    convert(str(checkpoint), str(out), quantize=True, q_bits=2, q_group_size=32)
    return out


@pytest.fixture(scope="module")
def factored(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compress(checkpoint, tmp_path_factory.mktemp("factored") / "out", keep=0.6).out


@pytest.fixture(scope="module", params=["rounded", "factored", *PLAN_FORMATS])
def compressed(request: pytest.FixtureRequest) -> Path:
    if request.param in PLAN_FORMATS:
        result: Compressed[BitsPlan] = request.getfixturevalue("in_every_format")[request.param]
        return result.out
    found: Path = request.getfixturevalue(request.param)
    return found


def cut_at(step: int) -> Any:
    """A ``Track`` that is interrupted before this step of the training."""

    def track(items: Sequence[T], description: str) -> Iterable[T]:
        for item in items:
            if description == "healing" and item == step:
                raise KeyboardInterrupt
            yield item

    return track


def divergence(out: Path, checkpoint: Path, file: Path) -> float:
    (result,) = evaluate(out, [file], reference=checkpoint, window=64, windows=12)
    assert result.kl is not None
    return result.kl


def stored(folder: Path) -> dict[str, mx.array]:
    files = sorted(folder.rglob("*.safetensors"))
    return {name: array for file in files for name, array in load_safetensors(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors whose bits differ; types and shapes never do."""
    old, new = stored(before), stored(after)
    assert {n: (a.dtype, a.shape) for n, a in old.items()} == {
        n: (a.dtype, a.shape) for n, a in new.items()
    }
    return {n for n, a in old.items() if not np.array_equal(array_bytes(a), array_bytes(new[n]))}


def test_it_diverges_less_on_other_text_and_keeps_its_codes_and_size(
    compressed: Path, checkpoint: Path, text: Calibration, heldout: Path, tmp_path: Path
) -> None:
    out, more = tmp_path / "out", replace(text, windows=128)
    result = heal(compressed, checkpoint, out, calibration=more, options=HealingOptions(80, 4))
    assert result.kl_after < 0.98 * result.kl_before  # so little text repairs little
    before, after = (divergence(f, checkpoint, heldout) for f in (compressed, out))
    assert after < 0.98 * before
    leaves = {"scales", "biases", "u.weight", "v.weight", "lora_a", "lora_b", "norm.weight"}
    types = {name: array.dtype for name, array in stored(compressed).items()}
    wanted = {n for n, t in types.items() if n.endswith(tuple(leaves)) and t != mx.uint32}
    assert len(wanted) == result.tensors
    assert set() < changed(compressed, out) <= wanted  # some by less than their type can hold
    size = (compressed / "model.safetensors").stat().st_size
    assert abs((out / "model.safetensors").stat().st_size - size) < 0.05 * size
    assert verify(out) == []
    adapter = str(out / "adapters") if (out / "adapters").exists() else None
    model, tokenizer = mlx_lm.load(str(out), adapter_path=adapter, trust_remote_code=True)
    assert isinstance(mlx_lm.generate(model, tokenizer, "def main(", max_tokens=4), str)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_manifest_tells_of_the_healing_and_its_errors_are_those_of_what_is_stored(
    factored: Path, checkpoint: Path, text: Calibration, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = heal(factored, checkpoint, out, calibration=text, options=SHORT)
    manifest = read_manifest(out)
    assert manifest.options["heal"]["kl_after"] == result.kl_after
    assert manifest.options["keep"] == 0.6
    source, new = stored(checkpoint), stored(out)
    records = [r for r in manifest.matrices.values() if not r.is_unchanged]
    for r in records:
        path = r.name.removesuffix(".weight")
        U, V, W = (
            np.asarray(a.astype(mx.float32))
            for a in (new[f"{path}.u.weight"], new[f"{path}.v.weight"], source[r.name])
        )
        error = np.linalg.norm(W - U @ V) / np.linalg.norm(W)
        assert r.relative_error == pytest.approx(error, rel=1e-4)
        assert r.relative_error > read_manifest(factored).matrices[r.name].relative_error
    restored = restore(out, tmp_path / "restored")
    woken = stored(restored.dest)
    for name, bound in restored.bounds.items():
        W, again = (np.asarray(a[name].astype(mx.float32)) for a in (source, woken))
        assert np.linalg.norm(W - again) / np.linalg.norm(W) == pytest.approx(bound, rel=1e-3)


def test_what_was_kept_exactly_is_kept_through_healing(
    checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    out, few = tmp_path / "out", Calibration(calibration, window=64, windows=8)
    compress(checkpoint, out, keep=0.6, exact=True)
    heal(out, checkpoint, calibration=few, options=HealingOptions(steps=1, batch=1))
    assert verify(out) == []
    restored = restore(out, tmp_path / "restored")
    assert restored.proved
    source, back = stored(checkpoint), stored(restored.dest)
    assert all(np.array_equal(array_bytes(source[n]), array_bytes(back[n])) for n in source)


def test_what_others_put_into_the_folder_outlives_healing_in_place(
    factored: Path, checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    out, few = tmp_path / "out", Calibration(calibration, window=64, windows=8)
    shutil.copytree(factored, out)
    mine = ("notes.txt", "model.gguf", "adapters/adapters.safetensors", "run/plastic-run.json")
    for name in mine:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name)
    heal(out, checkpoint, calibration=few, options=HealingOptions(steps=1, batch=1))
    assert [(out / name).read_text() for name in mine] == [*mine]
    assert verify(out) == []
    assert mine[0] not in read_manifest(out).files
    (out / "model-mine.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model-mine\.safetensors"):
        heal(out, checkpoint, calibration=few, options=HealingOptions(steps=1, batch=1))
    assert (out / "model-mine.safetensors").exists()


def test_a_run_cut_early_or_late_ends_bit_for_bit_like_one_that_was_not(
    compressed: Path, checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    whole, few = tmp_path / "whole", Calibration(calibration, window=64, windows=16)
    heal(compressed, checkpoint, whole, calibration=few, options=SHORT)
    for step in (1, 5):
        out = tmp_path / f"cut-{step}"
        with pytest.raises(KeyboardInterrupt):
            heal(compressed, checkpoint, out, calibration=few, options=SHORT, track=cut_at(step))
        left = [f"{out.name}.heal.safetensors", "whole"]
        assert sorted(path.name for path in tmp_path.iterdir()) == left
        heal(compressed, checkpoint, out, calibration=few, options=SHORT)
        assert contents(out) == contents(whole)
        assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "whole"]
        shutil.rmtree(out)


def test_a_cut_run_is_not_continued_with_other_arguments(
    rounded: Path,
    checkpoint: Path,
    text: Calibration,
    heldout: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        heal(rounded, checkpoint, out, calibration=text, options=SHORT, track=cut_at(1))
    with pytest.raises(FormatError, match=r"out\.heal\.safetensors.* had steps 6.* has 7"):
        heal(rounded, checkpoint, out, calibration=text, options=HealingOptions(steps=7, batch=2))
    other = Calibration(heldout, window=64, windows=24)
    with pytest.raises(FormatError, match=r"had text sha256"):
        heal(rounded, checkpoint, out, calibration=other, options=SHORT)
    chatty = shutil.copytree(rounded, tmp_path / "chatty")
    (chatty / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(FormatError, match=r"had file chat_template\.jinja nothing"):
        heal(chatty, checkpoint, out, calibration=text, options=SHORT)
    assert not out.exists()


def test_where_nothing_is_better_the_output_is_the_input_and_the_command_says_so(
    run: Run, factored: Path, checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    words = ["--reference", checkpoint, "--calibration", calibration, "--windows", 8]
    few = ["--window", 32, "--steps", 2, "--batch", 1, "--learning-rate", 50]
    code, out, err = run("heal", factored, *words, *few, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "nothing was better than the start" in out
    assert changed(factored, tmp_path / "out") == set()
    assert verify(tmp_path / "out") == []


def test_without_a_name_the_folder_is_replaced(
    run: Run, factored: Path, checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(factored, tmp_path / "copy")
    words = ["--reference", checkpoint, "--calibration", calibration, "--windows", 16]
    code, out, _ = run("heal", folder, *words, "--window", 32, "--steps", 5, "--json")
    assert code == 0
    record = json.loads(out)
    assert record["kl_after"] < record["kl_before"]
    assert changed(factored, folder)
    assert verify(folder) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_a_stock_checkpoint_is_not_replaced(
    rounded: Path, checkpoint: Path, text: Calibration
) -> None:
    with pytest.raises(FormatError, match=r"holds no plastic\.json"):
        heal(rounded, checkpoint, calibration=text, options=SHORT)


def test_a_checkpoint_with_nothing_to_train_is_refused(
    checkpoint: Path, text: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=r"nothing in it can be healed.*compress it first"):
        heal(checkpoint, checkpoint, tmp_path / "out", calibration=text, options=SHORT)
    assert list(tmp_path.iterdir()) == []


def test_another_reference_is_refused(
    factored: Path, rounded: Path, text: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=r"is not the source of.*name the source"):
        heal(factored, rounded, tmp_path / "out", calibration=text, options=SHORT)


def test_a_reference_with_other_weights_is_refused(
    factored: Path, copy: Path, text: Calibration, tmp_path: Path
) -> None:
    weights = load_safetensors(copy / "model.safetensors")
    weights["model.norm.weight"] = 2 * weights["model.norm.weight"]
    mx.save_safetensors(str(copy / "model.safetensors"), weights)
    with pytest.raises(FormatError, match=r"its weights are not those.*name the source"):
        heal(factored, copy, tmp_path / "out", calibration=text, options=SHORT)
    assert list(tmp_path.iterdir()) == [copy]


def test_a_text_that_is_too_short_is_refused(
    rounded: Path, checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    few = Calibration(calibration, window=64, windows=7)
    with pytest.raises(ValueError, match=r"needs 8 windows.*there are 7"):
        heal(rounded, checkpoint, tmp_path / "out", calibration=few, options=SHORT)


@pytest.mark.parametrize(
    ("model_type", "form"),
    [
        ("qwen3_5", "mixed"),
        ("qwen3_5", "factored"),
        ("qwen3_next", "mixed"),
        ("falcon_h1", "factored"),
    ],
)
def test_weights_that_mlx_lm_changes_on_loading_are_healed_as_they_are_loaded(
    model_type: str, form: str, tmp_path: Path
) -> None:
    source = build_checkpoint(tmp_path / "SRC", model_type, "published")
    rows = np.random.default_rng(0).integers(3, 500, (8, 17))
    learned, held = tmp_path / "learned.npy", tmp_path / "held.npy"
    np.save(learned, rows[:, :-1])
    np.save(held, rows[-1:])  # with the token after them, all that they predict is measured
    few = ("--calibration", learned, "--window", 16, "--windows", 8)
    out, plan = tmp_path / "out", tmp_path / "plan.json"
    if form == "mixed":
        asked = ("--bits", 4, "--bits-per-weight", 5, "--out", plan)
        command("plan", source, *few, *asked, "--exclude", "*.[023].*")
        command("compress", source, out, "--plan", plan)
    else:
        command("compress", source, out, "--keep", 0.6, "--strategy", "stable")

    def measured() -> float:
        words = ("--text", held, "--window", 17, "--windows", 1)
        (found,) = command("evaluate", out, "--reference", source, *words)["evaluations"]
        return float(found["kl"])

    before = measured()
    printed = command("heal", out, "--reference", source, *few, "--steps", 4)
    after = measured()
    assert printed["tensors"] > 0
    assert printed["kl_before"] == pytest.approx(before, rel=1e-3, abs=1e-4)
    assert printed["kl_after"] == pytest.approx(after, rel=1e-3, abs=1e-4)
    assert printed["kl_loaded"] == pytest.approx(after, rel=1e-3, abs=1e-4)
    assert after <= before + 1e-6
    command("verify", out)
