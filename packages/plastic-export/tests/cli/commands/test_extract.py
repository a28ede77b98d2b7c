"""``plastic extract``, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from plastic_export.cli import main

Make = Callable[..., Path]
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def pair(make_llama: Make) -> tuple[str, str, str]:
    """A base, the same with a difference of rank 1 and another norm, and a place for the result."""
    base, tuned = make_llama("base"), make_llama("tuned")
    file = str(tuned / "model.safetensors")
    weights = mx.load(file)
    weights[Q] += 0.2 * mx.ones_like(weights[Q])
    weights["model.norm.weight"] *= 1.25
    mx.save_safetensors(file, weights)
    return str(base), str(tuned), str(tuned.parent / "out")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["extract", *words])
    return int(ended.value.code or 0)


def test_it_prints_what_it_found(
    pair: tuple[str, str, str], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*pair, "--text", str(text), "--window", "24", "--windows", "4") == 0
    printed = capsys.readouterr().out
    assert "1 of 15" in printed
    assert "loss on text.txt, 92 tokens" in printed
    assert "beside     model.norm.weight (changed by 25.00%): as they became" in printed
    assert f"--model {pair[0]} --adapter-path {pair[2]}/adapters" in printed


def test_it_prints_one_object_of_numbers(
    pair: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*pair, "--energy", "0.9", "--no-check", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["peft"]["ranks"] == {"model.layers.0.self_attn.q_proj": 1}
    assert record["certificates"]["model.layers.0.self_attn.q_proj"]["relative_error"] < 0.05
    assert record["gain"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rank", "2", "--max-size", "1MB"), "error: --max-size and --rank each say how much"),
        (("--max-size", "100"), "error: --max-size must be at least"),
        (("--include", "*.none"), "matches no matrix"),
    ],
)
def test_bad_input_ends_in_one_line(
    pair: tuple[str, str, str],
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*pair, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path(pair[2]).exists()
