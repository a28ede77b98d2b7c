"""The shipped checkpoint dialled down and up, in stock mlx-lm, and killed meanwhile."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model as stock_load
from plastic_core.files import array_bytes
from plastic_export import (
    Budget,
    dial,
    load_safetensors,
    read_manifest,
    verify,
)

TOKENS = mx.array([[5, 300, 41, 7, 99, 12, 450, 3]])
SMALL = Budget("bits_per_weight", 3.6)


@pytest.fixture(scope="module")
def out(make_corrected: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint in 4 bits per weight, on backbones of 2 and 3 bits."""
    return make_corrected(tmp_path_factory.mktemp("dial") / "out")


@pytest.fixture(scope="module")
def small(out: Path) -> Path:
    """The same at 3.6 bits per weight, what was cut asleep."""
    return dial(out, out.with_name("small"), SMALL, park=True).dest


def logits(folder: Path) -> np.ndarray:
    model, _ = stock_load(folder, trust_remote_code=True)
    return np.array(model(TOKENS).astype(mx.float32))


def without(out: Path, small: Path, copy: Path) -> Path:
    """The folder with everything that the small one lacks set to zero, tensor by tensor."""
    shutil.copytree(out, copy)
    tensors = load_safetensors(out / "model.safetensors")
    for record in read_manifest(small).matrices.values():
        path = record.name.removesuffix(".weight")
        for leaf in ("scales", "biases"):  # of V: nothing enters those components
            name = f"{path}.v.{leaf}"
            if name in tensors:
                rows = tensors[name]
                awake = mx.arange(rows.shape[0])[:, None] < record.rank
                tensors[name] = mx.where(awake, rows, 0).astype(rows.dtype)
    mx.save_safetensors(str(copy / "model.safetensors"), tensors, {"format": "mlx"})
    return copy


def test_it_computes_what_the_folder_does_without_those_components(
    out: Path, small: Path, tmp_path: Path
) -> None:
    budget = SMALL.value / 8 * sum(np.prod(r.shape) for r in read_manifest(out).matrices.values())
    assert sum(r.stored_bytes for r in read_manifest(small).matrices.values()) <= budget
    ours, zeroed = logits(small), logits(without(out, small, tmp_path / "zeroed"))
    assert np.abs(ours - zeroed).max() <= 2e-2 * np.abs(zeroed).max()  # bfloat16 sums
    assert np.abs(ours - logits(out)).max() > 10 * np.abs(ours - zeroed).max()


def test_every_bit_is_back(out: Path, small: Path, tmp_path: Path) -> None:
    back = dial(small, tmp_path / "back").dest
    before, after = (load_safetensors(f / "model.safetensors") for f in (out, back))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert np.array_equal(array_bytes(tensor), array_bytes(after[name])), name
    for file in ("model.safetensors", "config.json", "plastic.json"):
        assert (out / file).read_bytes() == (back / file).read_bytes(), file


def test_the_command_and_the_others_agree(
    out: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    dest = tmp_path / "dest"
    code, printed, _ = run("dial", out, dest, "--size", "480KB", "--park", "--json")
    record = json.loads(printed)
    assert code == 0
    assert record["model_bytes"] == (dest / "model.safetensors").stat().st_size <= 480_000
    assert verify(dest) == []
    for words in (["inspect", dest], ["report", dest], ["verify", dest]):
        assert run(*words)[0] == 0, words
    card = (dest / "README.md").read_text()
    assert "| dialled | to 480000 bytes from a larger output; what was cut is asleep" in card
    code, _, said = run("dial", dest, tmp_path / "never", "--bits-per-weight", "1")
    assert code == 2
    assert "error: --bits-per-weight must be at least" in said
    code, _, said = run("dial", dest, tmp_path / "never")
    assert "give one of --bits-per-weight, --size, --keep and --full" in said
    for src, options, reason in (
        (tmp_path, ["--full"], "it is neither a compressed folder nor a run; name what"),
        (tmp_path / "none", ["--full"], "there is no such folder; check the path"),
        (dest, ["--max-size", "3KB"], "--max-size is for a run, and SRC is a compressed folder"),
    ):
        code, _, said = run("dial", src, tmp_path / "never", *options)
        assert (code, len(said.splitlines())) == (2, 1), said
        assert reason in said
    code, _, said = run("dial", dest, dest / "inside", "--full")
    assert "the folder that is dialled" in said
    assert len(said.splitlines()) == 1


def test_a_killed_command_leaves_the_old_folder_or_the_new_one(out: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    whole = {dial(out, dest, SMALL).dest.joinpath("plastic.json").read_bytes()}
    whole.add(dial(out, tmp_path / "other").dest.joinpath("plastic.json").read_bytes())
    code = (
        "import sys\nfrom plastic_export import dial\nprint('ready', flush=True)\n"
        "dial(sys.argv[1], sys.argv[2], force=True, check=False)"
    )
    for wait in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
        words = [sys.executable, "-c", code, str(out), str(dest)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        there = dest if dest.exists() else tmp_path / ".dest.replaced"
        assert verify(there) == []
        assert (there / "plastic.json").read_bytes() in whole
    dial(out, dest, force=True, check=False)
    assert [p.name for p in tmp_path.iterdir() if "dest" in p.name] == ["dest"]
