"""A plan in every format: written from one calibration, then run, asked and measured."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx_lm
import pytest
from plastic_export import BitsPlan, Compressed, evaluate, verify
from plastic_export.cli import main
from plastic_export.format import PLAN_FORMATS

FORMATS = PLAN_FORMATS
BUDGET = 3.5
HEADER = 200 * 9  # bytes that a matrix takes in the headers of the files, at most

Outputs = dict[str, Compressed[BitsPlan]]


def words_to_load(result: Compressed[BitsPlan]) -> list[str]:
    """How stock mlx-lm is told to load it."""
    words = ["--model", str(result.out)]
    if result.adapter_bytes:
        words += ["--adapter-path", str(result.out / "adapters")]
    return words + (["--trust-remote-code"] if result.needs_model_file else [])


@pytest.mark.parametrize("format", FORMATS)
def test_the_bytes_on_disk_are_those_that_were_planned(
    in_every_format: Outputs, format: str
) -> None:
    result = in_every_format[format]
    assert result.plan.bits_per_weight <= BUDGET
    assert sum(r.stored_bytes for r in result.matrices) == result.plan.nbytes
    left = result.source_bytes - sum(r.source_bytes for r in result.matrices)
    headers = result.model_bytes + result.adapter_bytes - result.plan.nbytes - left
    assert abs(headers) < HEADER * len(result.matrices)
    assert verify(result.out) == []


def test_each_format_holds_what_is_its_own(in_every_format: Outputs) -> None:
    corrected = in_every_format["corrected"]
    assert corrected.needs_model_file
    assert {"2 bits, groups of 64 + rank", "rank"} <= corrected.plan.mix.keys()
    assert {r.rank for r in in_every_format["adapter"].matrices} == {0, 4}
    assert in_every_format["adapter"].adapter_bytes > 0
    assert in_every_format["mixed"].plan.rank == 0


@pytest.mark.parametrize("format", FORMATS)
def test_it_diverges_about_as_predicted(
    checkpoint: Path, heldout: Path, in_every_format: Outputs, format: str
) -> None:
    # Measured 1.0, 1.2 and 1.1.
    ratio = (
        divergence(in_every_format[format].out, checkpoint, heldout)
        / in_every_format[format].plan.predicted
    )
    assert 0.7 < ratio < 2.4


def test_the_adapter_brings_the_backbones_nearer_to_the_source(
    checkpoint: Path, heldout: Path, in_every_format: Outputs, tmp_path: Path
) -> None:
    bare = shutil.copytree(in_every_format["adapter"].out, tmp_path / "bare")
    (bare / "plastic.json").unlink()  # without which its adapter is not known for ours
    with_it = divergence(in_every_format["adapter"].out, checkpoint, heldout)
    assert with_it < 0.97 * divergence(bare, checkpoint, heldout)  # measured 0.94


def divergence(out: Path, checkpoint: Path, text: Path) -> float:
    (measured,) = evaluate(out, [text], reference=checkpoint, window=128, windows=8)
    assert measured.kl is not None
    return measured.kl


@pytest.mark.parametrize("format", FORMATS)
def test_stock_mlx_lm_loads_and_generates(in_every_format: Outputs, format: str) -> None:
    result = in_every_format[format]
    model, tokenizer = mlx_lm.load(
        str(result.out),
        adapter_path=str(result.out / "adapters") if result.adapter_bytes else None,
        trust_remote_code=result.needs_model_file,
    )
    assert isinstance(mlx_lm.generate(model, tokenizer, "def main(", max_tokens=4), str)


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_of_stock_mlx_lm_answers_a_prompt(
    in_every_format: Outputs, format: str
) -> None:
    words = [*words_to_load(in_every_format[format]), "--prompt", "def ", "--max-tokens", "4"]
    command = [sys.executable, "-m", "mlx_lm", "generate", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert "Generation: " in done.stdout


@pytest.mark.parametrize("format", FORMATS)
def test_the_server_of_stock_mlx_lm_answers_a_prompt(
    in_every_format: Outputs, ask_server: Callable[..., Any], format: str
) -> None:
    answer = ask_server(*words_to_load(in_every_format[format]))
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("format", ["corrected", "adapter"])
def test_the_command_carries_a_plan_out_and_says_how_to_run_it(
    checkpoint: Path,
    calibration: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    format: str,
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    few = ["--windows", 1, "--include", "*.3.mlp.up_proj", "--bits-per-weight", 3, "--out", file]
    for words in (
        ["plan", checkpoint, "--calibration", calibration, "--format", format, *few],
        ["compress", checkpoint, out, "--plan", file],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"mlx_lm.generate --model {out}" in text
    assert ("--trust-remote-code" in text) == (format == "corrected")
    assert verify(out) == []
