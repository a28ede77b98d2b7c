"""A trained checkpoint compressed, run by stock mlx-lm, measured, restored."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from plastic_export import Calibration, Compressed, compress, evaluate, load_safetensors, restore
from plastic_select import STRATEGIES
from plastic_select.rules import NEED_GRAM
from safetensors import safe_open

EPS_BF16 = 2.0**-8
Compress = dict[str, Compressed]


def calibrated(strategy: str, text: Path) -> Calibration | None:
    return Calibration(text, window=128, windows=16) if strategy in NEED_GRAM else None


@pytest.fixture(scope="module")
def compressed(
    checkpoint: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> Compress:
    """The checkpoint at keep 0.6 under every strategy."""
    folder = tmp_path_factory.mktemp("compressed")
    return {
        strategy: compress(
            checkpoint,
            folder / strategy,
            keep=0.6,
            strategy=strategy,
            calibration=calibrated(strategy, calibration),
        )
        for strategy in STRATEGIES
    }


def stock(*words: object) -> str:
    """Run a command of stock mlx-lm and return what it printed."""
    command = [sys.executable, "-m", "mlx_lm", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bits(array: mx.array) -> np.ndarray:
    return np.asarray(array.view(mx.uint16))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_bytes_on_disk_are_those_that_were_planned(compressed: Compress, strategy: str) -> None:
    result = compressed[strategy]
    assert result.plan.kept <= 0.6
    out = result.out
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        names = set(file.keys())
    weights = load_safetensors(out / "model.safetensors")
    sizes = {name: array.nbytes for name, array in weights.items()}
    assert names == sizes.keys()
    for record in result.matrices:
        path = record.name.removesuffix(".weight")
        factors = [f"{path}.u.weight", f"{path}.v.weight"]
        parts = [record.name] if record.is_unchanged else factors
        assert sum(sizes[part] for part in parts) == record.stored_bytes
    saved = result.plan.source_bytes - result.plan.awake_bytes
    header_slack = 200 * 2 * len(result.matrices)
    assert abs(result.source_bytes - result.model_bytes - saved) <= header_slack


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stock_mlx_lm_loads_and_generates(compressed: Compress, strategy: str) -> None:
    out = compressed[strategy].out
    model, tokenizer = mlx_lm.load(str(out), trust_remote_code=True)
    text = mlx_lm.generate(model, tokenizer, "def main(", max_tokens=4)
    assert isinstance(text, str)


def test_stock_mlx_lm_asks_before_it_runs_the_model_file(compressed: Compress) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        mlx_lm.load(str(compressed["stable"].out))


def test_the_commands_of_stock_mlx_lm_accept_it(compressed: Compress, tmp_path: Path) -> None:
    out = compressed["energy"].out
    words = ["--trust-remote-code", "--prompt", "def ", "--max-tokens", 4]
    assert "Generation: " in stock("generate", "--model", out, *words)
    quantized = tmp_path / "q4"
    stock(
        "convert", "--hf-path", out, "--mlx-path", quantized, "--trust-remote-code",
        "-q", "--q-bits", 4, "--q-group-size", 32,
    )  # fmt: skip
    assert "Generation: " in stock("generate", "--model", quantized, *words)


def test_the_server_of_stock_mlx_lm_answers(
    compressed: Compress, ask_server: Callable[..., Any]
) -> None:
    answer = ask_server("--model", compressed["stable"].out, "--trust-remote-code")
    assert answer["usage"]["completion_tokens"] == 3


def test_the_dense_format_loads_without_any_flag(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "dense"
    result = compress(checkpoint, out, keep=0.6, strategy="energy", format="dense")
    model, tokenizer = mlx_lm.load(str(out))
    assert isinstance(mlx_lm.generate(model, tokenizer, "def main(", max_tokens=4), str)
    weights = load_safetensors(out / "model.safetensors")
    for record in result.matrices[:3]:
        s = np.linalg.svd(np.asarray(weights[record.name].astype(mx.float32)), compute_uv=False)
        rounding = EPS_BF16 * np.sqrt(max(record.shape)) * s[0]
        assert s[record.rank] <= rounding < s[0]


def test_more_bytes_never_diverge_more_and_calibration_pays(
    checkpoint: Path, calibration: Path, heldout: Path, compressed: Compress, tmp_path: Path
) -> None:
    rich = compress(
        checkpoint,
        tmp_path / "rich",
        keep=0.9,
        strategy="activation",
        calibration=calibrated("activation", calibration),
    )
    kl = {
        name: evaluate(str(out), [heldout], reference=str(checkpoint), window=128, windows=8)[0].kl
        for name, out in {
            "0.9 activation": rich.out,
            "0.6 activation": compressed["activation"].out,
            "0.6 energy": compressed["energy"].out,
            "source": checkpoint,
        }.items()
    }
    assert kl["source"] == pytest.approx(0, abs=1e-6)  # the reference is kept in two bytes
    assert 0 < kl["0.9 activation"] < kl["0.6 activation"] < kl["0.6 energy"]


@pytest.mark.parametrize("format", ["factored", "dense"])
def test_restore_wakes_everything(checkpoint: Path, tmp_path: Path, format: str) -> None:
    out, dest = tmp_path / "out", tmp_path / "dest"
    result = compress(checkpoint, out, keep=0.5, strategy="energy", format=format)
    restored = restore(out, dest)
    before = load_safetensors(checkpoint / "model.safetensors")
    after = load_safetensors(dest / "model.safetensors")
    assert after.keys() == before.keys() == set(restored.exact) | restored.bounds.keys()
    for name in restored.exact:
        assert np.array_equal(bits(before[name]), bits(after[name]))
    for name, bound in restored.bounds.items():
        A, B = (np.asarray(w[name].astype(mx.float32), np.float64) for w in (before, after))
        error = np.linalg.norm(A - B) / np.linalg.norm(A)
        assert error == pytest.approx(bound, rel=0.05)  # the products may round differently
        assert error < 3 * EPS_BF16
    assert len(restored.bounds) == sum(not r.is_unchanged for r in result.matrices)
    config = json.loads((dest / "config.json").read_text())
    assert config == json.loads((checkpoint / "config.json").read_text())
    assert (dest / "tokenizer.model").read_bytes() == (checkpoint / "tokenizer.model").read_bytes()
    mlx_lm.load(str(dest))


def test_keeping_everything_leaves_every_bit(checkpoint: Path, tmp_path: Path) -> None:
    compress(checkpoint, tmp_path / "all", keep=1.0)
    before = load_safetensors(checkpoint / "model.safetensors")
    after = load_safetensors(tmp_path / "all" / "model.safetensors")
    assert all(np.array_equal(bits(before[n]), bits(after[n])) for n in before)


def test_the_same_run_writes_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for name in "ab":
        compress(checkpoint, tmp_path / name, keep=0.6, strategy="theorem")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_quantised_checkpoint_is_compressed_too(checkpoint: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "q8"
    stock(
        "convert", "--hf-path", checkpoint, "--mlx-path", quantized,
        "-q", "--q-bits", 8, "--q-group-size", 32,
    )  # fmt: skip
    out = tmp_path / "out"
    result = compress(quantized, out, keep=0.9, include=["*mlp*"])
    assert result.plan.kept <= 0.9
    model, tokenizer = mlx_lm.load(str(out), trust_remote_code=True)
    assert isinstance(mlx_lm.generate(model, tokenizer, "def main(", max_tokens=4), str)
    restored = restore(out, tmp_path / "dest")
    assert max(restored.bounds.values()) < 3 * EPS_BF16
    mlx_lm.load(str(tmp_path / "dest"))
