"""The bake-off in little: what it makes, keeps, prints and refuses."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from numpy.typing import NDArray
from plastic_export import Calibration, load_model
from plastic_runtime import input_grams

BENCH = Path(__file__).parents[1] / "tools" / "bench"
FEW = ("--windows", "4", "--window", "64", "--measured", "2")


def quality(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    places = ["--results", folder / "rows.jsonl", "--work", folder / "work"]
    command = [sys.executable, BENCH / "quality.py", *places, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


def kept(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with two rows, and what was printed of them."""
    folder = tmp_path_factory.mktemp("quality")
    words = ("--table", "bits", "--method", "rounding", "knapsack", "--bits", "3.5")
    done = quality(folder, *words, *FEW)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def bakeoff(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder of the rows as a package."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("bakeoff")


def check_figures(figures: dict[str, Any]) -> None:
    assert figures["bits_per_weight"] == pytest.approx(3.5, abs=0.02)
    assert figures["nbytes"] > 500_000
    assert figures["seconds"]["cpu"] > 0
    assert {*figures["texts"]} == {"heldout", "heldout-prose"}
    assert all(0 < text["kl"] < 0.2 for text in figures["texts"].values())


def test_every_row_is_kept_with_all_its_figures(baked: tuple[Path, str]) -> None:
    rows = kept(baked[0])
    assert [row["settings"]["method"] for row in rows] == ["rounding", "knapsack"]
    for row in rows:
        check_figures(row["figures"])
    assert [path.suffix for path in (baked[0] / "work").rglob("*") if path.is_file()] == [
        ".reference"
    ]


def test_a_row_that_is_kept_is_not_made_again(baked: tuple[Path, str]) -> None:
    folder, printed = baked
    again = quality(folder, "--table", "bits", "--method", "rounding", "--bits", "3.5", *FEW)
    assert (again.stderr, again.stdout) == ("", printed)
    assert len(kept(folder)) == 2


def test_a_table_says_what_its_rows_share(baked: tuple[Path, str]) -> None:
    printed = baked[1]
    assert "| knapsack |" in printed
    assert "- model: stdlib-llama" in printed
    assert "at most 4 windows of 64 tokens, the same for every method" in printed
    assert "mlx-lm " in printed.split("- versions:")[1]


@pytest.mark.long
def test_a_plan_of_ours_serves_other_budgets(tmp_path: Path) -> None:
    for bits in ("3.5", "4"):
        done = quality(tmp_path, "--table", "bits", "--method", "mixed", "--bits", bits, *FEW)
        assert done.returncode == 0, done.stderr
    first, second = (row["figures"] for row in kept(tmp_path))
    check_figures(first)
    assert first["predicted"] > second["predicted"] > 0
    left = sorted(p.name for p in (tmp_path / "work").rglob("mixed*"))
    assert left == ["mixed.grams.npz", "mixed.json", "mixed.seconds.json"]


def test_a_budget_that_no_width_hits_is_left_out_with_the_reason(tmp_path: Path) -> None:
    done = quality(tmp_path, "--table", "bits", "--method", "rounding", "--bits", "3", *FEW)
    assert "left out: rounding at 3: row: no bits in groups of 64 or 128 take 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = quality(tmp_path, "--text", "none.txt")
    assert done.returncode == 1
    assert (
        done.stderr == "error: none.txt: no such file; name texts with --text and --calibration\n"
    )


def test_a_measurement_that_takes_too_long_is_stopped_and_made_with_more_time(
    bakeoff: Any, tmp_path: Path
) -> None:
    kept_module = importlib.import_module("kept.measurements")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, signal, sys\n"
        "if json.loads(sys.argv[3]).get('limit') == 1:\n"
        "    os.kill(os.getpid(), signal.SIGXCPU)\n"
        "print(json.dumps({'figure': 5}))\n"
    )
    found = [
        kept_module.Measurements(
            script, tmp_path / "rows.jsonl", again=False, kept=False, limit=limit
        ).of("row", name="a")
        for limit in (1, 1, 2, None)
    ]
    assert found == [{"stopped": 1}, {"stopped": 1}, {"figure": 5}, {"figure": 5}]
    assert len(kept(tmp_path)) == 2


def test_processor_time_is_limited(bakeoff: Any) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1])\n"
    code += "from kept.limit import at_most\n"
    code += "with at_most(1):\n    while True: pass\n"
    done = subprocess.run([sys.executable, "-c", code, str(BENCH)], timeout=60, check=False)
    assert done.returncode == -signal.SIGXCPU


def row(bakeoff: Any, method: str, budget: float, prose: float, code: float) -> Any:
    """A row that was measured: its KL on two texts, ten times that in the tail."""
    texts = {name: {"kl": kl, "kl_999": 10 * kl} for name, kl in (("prose", prose), ("code", code))}
    results = importlib.import_module("board.results")
    return results.KeptRow(method, budget, 0, {"texts": texts, "predicted": None})


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((0.5, 0.6), "met"),
        ((0.5, 0.65), "missed on code"),
        ((0.7, 0.9), "missed on code, prose"),
    ],
)
def test_a_target_is_judged_on_every_text(
    bakeoff: Any, ours: tuple[float, float], verdict: str
) -> None:
    goals, results = (importlib.import_module(f"board.{n}") for n in ("goals", "results"))
    rows = [
        row(bakeoff, "gptq", 3.5, 1.0, 2.0),
        row(bakeoff, "awq", 3.5, 2.0, 1.0),
        row(bakeoff, "mixed", 3.5, *ours),
    ]
    lines = [*goals.ratio_lines(results.Comparable({}, {"bits": rows}), goals.REAL, "kl_999")]
    (line,) = (each for each in lines if each.what.startswith("mixed / best"))
    assert (line.budget, line.verdict) == ("3.5", verdict)


def dense_weights(folder: Path) -> dict[str, NDArray[np.float64]]:
    """Every matrix of a folder as its layer computes with it, by module path."""
    found = {}
    for path, m in load_model(folder).named_modules():
        if isinstance(m, nn.QuantizedLinear):
            W = mx.dequantize(m.weight, m.scales, m.biases, m.group_size, m.bits)
        elif isinstance(m, nn.Linear):
            W = m.weight
        else:
            continue
        found[path] = np.array(W.astype(mx.float32), dtype=np.float64)
    return found


def test_gptq_of_the_bench_leaves_less_error_in_every_layer_than_rounding(
    bakeoff: Any, tmp_path: Path, checkpoint: Path, calibration: Path
) -> None:
    quantizers = importlib.import_module("bakeoff.quantizers")
    source = dense_weights(checkpoint)
    task = quantizers.Task(checkpoint, frozenset(source), Calibration(calibration, 64, 16))
    quantizers.gptq_bits(task, tmp_path / "gptq", 3)
    grams = input_grams(load_model(checkpoint), [row[None] for row in task.tokens()])
    gptq = dense_weights(tmp_path / "gptq")
    for path, W in source.items():
        G = grams[path].matrix
        packed = mx.quantize(mx.array(W, mx.float32), 64, 3)
        E, plain = gptq[path] - W, np.array(mx.dequantize(*packed, 64, 3)) - W
        assert np.vdot(E @ G, E) < np.vdot(plain @ G, plain), path
