"""Cut a training run in its middle, go on, and compare with an undisturbed run, seed by seed.

    uv run tools/faults/resume.py               10 seeds

Each run of ``plastic train`` grows, shrinks and wakes on both sides of the cut (SIGKILL before a
step drawn from the middle third). The seeds take turns in the optimizers; all accumulate gradients
over two batches, and every other one checkpoints them, which computes activations twice. Exit
status 1 if one bit differs, or if something did not happen on one side.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from forks import finished, one_thread, started
from plastic_export import TrainingOptions
from plastic_export.training import OPTIMIZERS, read_history
from plastic_runtime import ResumableBatches
from plastic_runtime.log import CHANGES
from runbits import compare_runs
from tinyrun import TRAINING, TinyRun


def main() -> int:
    """Print one row per seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    one_thread()
    sides = [f"{action} {side} the cut" for side in ("before", "after") for action in CHANGES]
    columns = (
        "seed",
        "optimizer",
        "checkpoints",
        "cut before step",
        *sides,
        "differing bits",
        "other",
    )
    print("  ".join(columns))
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        tiny = TinyRun(Path(folder, "base"), Path(folder, "data"))
        finished(started(tiny.write))
        for seed in range(options.seeds):
            row = cut_and_compare(tiny, Path(folder, str(seed)), seed)
            cells = zip(row, columns, strict=True)
            print("  ".join(str(cell).rjust(len(name)) for cell, name in cells), flush=True)
            failed |= any(row[-2:]) or not all(row[4:-2])
    return int(failed)


def cut_and_compare(tiny: TinyRun, folder: Path, seed: int) -> tuple[Any, ...]:
    """The row of one seed."""
    name = [*OPTIMIZERS][seed % len(OPTIMIZERS)]
    twice = seed % 2 == 1
    training = replace(TRAINING, seed=seed, optimizer=name, grad_checkpoint=twice)
    third = training.steps // 3
    step = third + int(np.random.default_rng(seed).integers(third))
    folder.mkdir()
    finished(started(tiny.train, folder / "whole", training))
    cut = started(train_until_step, tiny, folder / "cut", training, step)
    cut.join()
    if cut.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the run was to be killed and ended with {cut.exitcode}")
    finished(started(tiny.train, folder / "cut", training))
    finished(started(write_row, folder, step))
    return (
        seed,
        name,
        "yes" if twice else "no",
        step,
        *json.loads((folder / "row.json").read_text()),
    )


def train_until_step(tiny: TinyRun, out: Path, training: TrainingOptions, step: int) -> None:
    """Train, and die when the batch of that step is asked for."""
    iterate, taken = ResumableBatches.__call__, 0

    def batches(self: ResumableBatches, *args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        for batch in iterate(self, *args, **kwargs):
            taken += kwargs.get("loop", False)
            if taken > step:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    ResumableBatches.__call__ = batches  # type: ignore[method-assign]
    tiny.train(out, training)


def write_row(folder: Path, step: int) -> None:
    """Count changes on both sides and compare: this computes with MLX, its parent must not."""
    events = read_history(folder / "cut").events
    sides = Counter((at < step, event.action) for at, event in events)
    counts = [sides[before, action] for before in (True, False) for action in CHANGES]
    difference = compare_runs(folder / "whole", folder / "cut")
    row = [*counts, difference.bits, len(difference.other)]
    (folder / "row.json").write_text(json.dumps(row))


if __name__ == "__main__":
    sys.exit(main())
