"""Kill a training run again and again, go on each time, and compare with an undisturbed run.

    uv run tools/faults/kills.py                200 kills
    uv run tools/faults/kills.py --kills 20

A run of ``plastic train`` that grows, shrinks and wakes. Every other kill (SIGKILL) comes from
inside, at a moment drawn beforehand: before a batch, before or after a file is synced or renamed.
The others come from outside, after a time drawn beforehand. A run that ends before the last kill
is compared to the bit and another one begins. Exit status 1 if one bit differs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from forks import finished, one_thread, started
from plastic_runtime import ResumableBatches
from runbits import compare_runs
from tinyrun import TinyRun

MOMENTS = 60  # a kill from inside comes after at most this many


@dataclass
class Tally:
    """The events counted so far."""

    inside: int = 0
    outside: int = 0
    survived: int = 0
    runs: int = 0
    bits: int = 0
    other: int = 0

    @property
    def kills(self) -> int:
        """Kills that met a living run."""
        return self.inside + self.outside


def main() -> int:
    """Kill, go on, compare; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    one_thread()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tally = kill_and_compare(Path(folder), options.kills, np.random.default_rng(options.seed))
    rows = {
        "kills at a drawn moment": tally.inside,
        "kills after a drawn time": tally.outside,
        "starts that ended by themselves": tally.survived,
        "runs completed and compared": tally.runs,
        "differing bits": tally.bits,
        "other differences": tally.other,
    }
    for name, count in rows.items():
        print(f"{name:34}{count:8}")
    print(f"{'seconds':34}{time.perf_counter() - begun:8.0f}")
    return 1 if tally.bits or tally.other or not tally.runs else 0


def kill_and_compare(folder: Path, kills: int, rng: np.random.Generator) -> Tally:
    """Do so until there were that many kills and the last run has been completed."""
    tiny = TinyRun(folder / "base", folder / "data")
    finished(started(tiny.write))
    begun = time.perf_counter()
    finished(started(tiny.train, folder / "whole"))
    whole = time.perf_counter() - begun
    tally = Tally()
    while tally.kills < kills or (folder / "cut").exists():
        if tally.kills < kills and _cut(tiny, folder / "cut", tally, whole, rng):
            continue
        if tally.kills >= kills:
            finished(started(tiny.train, folder / "cut"))
        tally.runs += 1
        finished(started(write_difference, folder))
        bits, other = json.loads((folder / "difference.json").read_text())
        tally.bits += bits
        tally.other += len(other)
        for name in other:
            print(f"differs: {name}", file=sys.stderr)
        (folder / "cut").rename(folder / f"done-{tally.runs}")
    return tally


def train_until_moment(tiny: TinyRun, out: Path, moment: int) -> None:
    """Train, or go on, and die at a moment."""
    _kill_at(moment)
    tiny.train(out)


def write_difference(folder: Path) -> None:
    """Compare the two runs in a folder: this computes with MLX, which its parent must not."""
    difference = compare_runs(folder / "whole", folder / "cut")
    text = json.dumps([difference.bits, difference.other])
    (folder / "difference.json").write_text(text)


def _cut(tiny: TinyRun, out: Path, tally: Tally, whole: float, rng: np.random.Generator) -> bool:
    """Start the run and kill it in one way or the other; whether the kill met it alive."""
    moment, seconds = int(rng.integers(1, MOMENTS)), float(rng.uniform(0, 0.6 * whole))
    inside = tally.kills % 2 == 0
    if inside:
        run = started(train_until_moment, tiny, out, moment)
    else:
        run = started(tiny.train, out)
        run.join(seconds)
        run.kill()
    run.join()
    if run.exitcode == -signal.SIGKILL:
        tally.inside += inside
        tally.outside += not inside
        return True
    finished(run)
    tally.survived += 1
    return False


def _kill_at(moment: int) -> None:
    """From now on count moments, and die at that one."""
    left = moment

    def pass_moment() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            pass_moment()
            result = function(*args, **kwargs)
            pass_moment()
            return result

        return watched

    os.fsync, os.replace = around(os.fsync), around(os.replace)
    iterate = ResumableBatches.__call__

    def batches(self: ResumableBatches, *args: Any, **kwargs: Any) -> Any:
        for batch in iterate(self, *args, **kwargs):
            pass_moment()
            yield batch

    ResumableBatches.__call__ = batches  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
