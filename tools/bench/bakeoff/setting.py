"""What every row starts from, and what it leaves."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from plastic_core.factors import BITS
from plastic_export import Calibration, Checkpoint, plan_checkpoint, read_plan
from plastic_export.checkpoint import module_path
from plastic_export.compression import plannable
from plastic_export.source import Source
from plastic_runtime import GramFile

from bakeoff.low_rank import Study
from bakeoff.quantizers import SCALES, Task, Unsupported
from bakeoff.written import Written

DATA = Path(__file__).parents[3] / "tests-integration" / "data" / "stdlib-llama"


class BakeOff:
    """What every row needs: the options, a folder, and what the other modules start from."""

    def __init__(self, options: argparse.Namespace, folder: Path, checkpoint: Checkpoint) -> None:
        self.options = options
        self.folder = folder
        self.checkpoint = checkpoint
        exclude, embeddings = options.exclude, options.embeddings
        self.matrices = tuple(
            plannable(Source.of(checkpoint), exclude=exclude, embeddings=embeddings)
        )
        paths = frozenset(module_path(m.name) for m in self.matrices)
        calibration = Calibration(options.calibration, 256, options.windows)
        self.task = Task(options.source, paths, calibration, options.steps, tuple(options.rates))

    @cached_property
    def study(self) -> Study:
        """The Grams that a plan leaves."""
        grams = read_plan(self.plan("mixed")).grams[0]
        return Study(self.checkpoint, self.matrices, GramFile(self.folder / grams))

    def plan(self, format: str) -> Path:
        """One plan of a format for all budgets, made when it is first asked for."""
        file, grams = self.folder / f"{format}.json", self.folder / "mixed.grams.npz"
        if not file.exists():
            if grams.exists() and format != "mixed":
                file.with_suffix(".grams.npz").hardlink_to(grams)
            plan_checkpoint(
                self.options.source,
                file,
                calibration=self.task.calibration,
                budgets=self.options.bits,
                format=format,
                exclude=self.options.exclude,
                embeddings=self.options.embeddings,
            )
        return file


Method = Callable[[BakeOff, Path, Any], Written]  # writes what it makes of one budget


def weigh(folder: Path, predicted: float | None = None) -> Written:
    """A finished checkpoint: the bytes of its model files and of its adapter."""
    files = [*folder.glob("model*.safetensors"), *folder.glob("adapters/*.safetensors")]
    return Written(folder, sum(p.stat().st_size for p in files), predicted)


def whole_bits(budget: float) -> int:
    """The bits that take ``budget`` bits per weight with their scales."""
    bits = budget - SCALES
    if bits not in BITS:
        raise Unsupported(f"no whole bits take {budget:g} bits per weight")
    return int(bits)
