"""The same seed gives the same bytes: everything done twice, in two processes, and compared.

    uv run tools/faults/repeat.py            every output, the demo included: about three minutes
    uv run tools/faults/repeat.py --quick    without the demo, with less text
    uv run tools/faults/repeat.py --quick --parts compressed trained

The two processes have different ``PYTHONHASHSEED``s, so that no order of a set or of a hash decides
anything. Compared are the SHA-256 of every file written: compressed by rank in both formats and
kept exactly, restored, planned and executed in three formats, healed, trained with a sleep store.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from plastic_core import RankLayer
from plastic_export import (
    Calibration,
    Choices,
    HealingOptions,
    compress,
    execute_plan,
    heal,
    plan_checkpoint,
    restore,
)
from plastic_runtime import PlasticityManager, SleepStore, read_events, save_run
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests-integration" / "data" / "stdlib-llama"
TEXT = SOURCE / "calibration.txt"
FEW = 8
"""Windows of the quick run."""

CHOICES: dict[str, Choices] = {
    "mixed": Choices(bits=(2, 3, 4)),
    "corrected": Choices(bits=(2,), factor_bits=(8, 16), bare=True, group_sizes=(64,)),
    "adapter": Choices(bits=(2,), factor_bits=(16,), ranks=(4,), group_sizes=(64,)),
}


def compress_by_rank(folder: Path, windows: int) -> None:
    """By rank, in both formats; and back."""
    text = Calibration(TEXT, window=64, windows=windows)
    compress(SOURCE, folder / "factored", keep=0.6, exact=True)
    compress(
        SOURCE, folder / "dense", keep=0.6, format="dense", strategy="activation", calibration=text
    )
    restore(folder / "factored", folder / "exactly")
    restore(folder / "dense", folder / "woken")


def plan_and_heal(folder: Path, windows: int) -> None:
    """A plan in every format, carried out; one of them healed."""
    text = Calibration(TEXT, window=64, windows=windows)
    formats: list[str] = ["corrected"] if windows == FEW else list(CHOICES)
    for format in formats:
        plan_checkpoint(
            SOURCE,
            folder / "plan.json",
            calibration=text,
            budgets=[3.5],
            format=format,
            choices=CHOICES[format],
            include=["*.[23].*"],
            force=True,
        )
        execute_plan(SOURCE, folder / format, folder / "plan.json")
    heal(
        folder / "corrected",
        SOURCE,
        folder / "healed",
        calibration=text,
        options=HealingOptions(steps=2, batch=1),
    )


def train_with_sleepers(folder: Path, windows: int) -> None:
    """A run whose ranks follow its loss, with its sleepers on disk."""
    mx.random.seed(0)
    model = nn.Sequential(*(RankLayer.from_linear(nn.Linear(16, 16), 4) for _ in range(4)))
    optimizer = optim.Adam(1e-2)
    x = mx.random.normal((32, 16))
    with SleepStore(folder / "sleep") as store:

        def loss() -> mx.array:
            return mx.square(model(x) - mx.sin(3 * x)).mean()

        manager = PlasticityManager(
            model, optimizer, loss=loss, patience=1, cooldown=1, log=folder / "e.jsonl", sleep=store
        )
        step = nn.value_and_grad(model, loss)
        for _ in range(10 * windows):
            value, gradients = step()
            optimizer.update(model, gradients)
            manager.step(value)
        save_run(folder / "run.safetensors", model, optimizer, manager)
    without_time(folder / "e.jsonl")


def run_demo(folder: Path, windows: int) -> None:
    """What the README shows."""
    command = [sys.executable, str(ROOT / "tools" / "demo.py"), "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for name in ("blocks.jsonl", "teacher.jsonl"):
        without_time(folder / name)


def without_time(log: Path) -> None:
    """Take the time of day out of an event log."""
    untimed = {"time": 0, "seconds": 0}
    log.write_text(json.dumps([asdict(event) | untimed for event in read_events(log)]))


PARTS: dict[str, Callable[[Path, int], None]] = {
    "compressed": compress_by_rank,
    "planned": plan_and_heal,
    "trained": train_with_sleepers,
    "demo": run_demo,
}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_process(part: str, windows: int, seed: str) -> dict[str, str]:
    """Do one part in a new process and return the digests of what it wrote."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name) / "work"  # of the same name in both, which outputs may state
        work.mkdir()
        command = [sys.executable, __file__, "--child", part, "--windows", str(windows)]
        environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, check=True, cwd=work, env=environment)
        return digests(work)


def main() -> int:
    """Print one row per part; 1 if a file differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the demo, with less text")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="some outputs")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--windows", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        PARTS[options.child](Path(), options.windows)
        return 0
    table = Table("output", "files", "the same", "different")
    differing = []
    for part in options.parts:
        if options.quick and part == "demo":
            continue
        windows = FEW if options.quick else 64
        one, other = (in_process(part, windows, seed) for seed in ("1", "2"))
        wrong = sorted(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))
        differing += [f"{part}/{name}" for name in wrong]
        table.add_row(part, str(len(one)), str(len(one) - len(wrong)), ", ".join(wrong))
    Console(width=120, highlight=False).print(table)
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
