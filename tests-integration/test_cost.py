"""The bench of costs in little: what it measures, keeps and prints."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "tools" / "bench"


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The rows of the bench as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("costs.rows")


def cost(results: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH / "cost.py", "--quick", "--results", results, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 2.5])
def test_the_exponent_of_a_power_is_found(costs: Any, power: float) -> None:
    sizes = [1.0, 2.0, 5.0, 70.0]
    times = [3.0 * size**power for size in sizes]
    assert costs.exponent(sizes, times) == pytest.approx(power, abs=1e-12)


def test_what_was_measured_is_kept_and_not_measured_again(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    first = cost(results, "--rows", "rounding")
    assert first.returncode == 0, first.stderr
    kept = results.read_text()
    assert json.loads(kept)["figures"]["cpu"] > 0
    second = cost(results, "--rows", "rounding")
    assert (second.stdout, results.read_text()) == (first.stdout, kept)
    assert "| met" in second.stdout


def test_a_row_that_was_not_measured_says_so(tmp_path: Path) -> None:
    done = cost(tmp_path / "results.jsonl", "--finished", "--rows", "calibration,prices")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not measured") == 3
    assert not (tmp_path / "results.jsonl").exists()


def test_a_peer_that_takes_longer_than_it_is_let_bounds_the_ratio(
    costs: Any,
) -> None:
    ours = {"cpu": 30.0, "wall": 20.0, "kl": 0.1}
    measured = {"ours": ours, "peer": {"stopped": 40}}
    made = SimpleNamespace(of=lambda kind, **_: measured[kind])
    scale = SimpleNamespace(windows=1, window=2, steps=1)
    bench = costs.Bench(made, made, scale, "model", {}, "text", "heldout")
    line = costs.over_peer(bench, "mixed", "awq", 1.0)
    assert (line.figure, line.met) == ("below 0.75, 30 s / stopped after 40 s", True)
    assert costs.over_peer(bench, "mixed", "awq", 0.5).met is None


def test_an_unknown_row_is_refused_by_name(tmp_path: Path) -> None:
    done = cost(tmp_path / "results.jsonl", "--rows", "price,speed")
    assert done.returncode == 2
    assert "'speed' is none of compression, corrected, price" in done.stderr
