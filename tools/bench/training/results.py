"""Runs that are made once and kept, line by line, in a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from training.methods import METHODS
from training.setting import RunResult, TrainingBench


def runs(options: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """All runs, seed by seed."""
    for seed in range(options.seeds):
        for rank in options.ranks:
            for method in options.methods:
                yield method, rank, seed


def measured(bench: TrainingBench) -> list[RunResult]:
    """Make all runs that are not on file yet."""
    options = bench.options
    file: Path | None = options.results
    found = on_file(file)
    for method, rank, seed in runs(options):
        if (method, rank, seed) in found:
            continue
        for result in METHODS[method](bench, rank, seed):
            found[result.method, rank, seed] = result
            line = json.dumps(asdict(result))
            print(line, file=sys.stderr, flush=True)
            if file is not None:
                with file.open("a") as opened:
                    opened.write(line + "\n")
    asked = {(rank, seed) for _, rank, seed in runs(options)}
    return [r for r in found.values() if (r.rank, r.seed) in asked]


def on_file(file: Path | None) -> dict[tuple[str, int, int], RunResult]:
    """Finished runs by method, rank and seed."""
    lines = [] if file is None or not file.exists() else file.read_text().splitlines()
    return {(r.method, r.rank, r.seed): r for r in (RunResult(**json.loads(x)) for x in lines)}
