"""What a method starts from: the matrices, the calibration text, a plan of ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from meters import Spent, spent
from plastic_core.factors import BITS
from plastic_core.files import write_json
from plastic_export import Candidate, Checkpoint, Choices, plan_checkpoint, read_plan
from plastic_export.checkpoint import module_path
from plastic_export.compression import plannable
from plastic_export.plan import backbones_of, packed_bytes
from plastic_export.source import Source
from plastic_runtime import GramFile

from bakeoff.low_rank import Study
from bakeoff.quantizers import GROUP, SCALES, Task, Unsupported
from bakeoff.setting import Setting
from bakeoff.written import Written

FIRST = "mixed"  # the format whose plan measures the Grams


class BakeOff:
    """What every method needs.

    Args:
        setting: What all rows share.
        checkpoint: The open source.
        steps: Steps of what is tuned.
        rates: Rates of DWQ.

    Attributes:
        source: The source as mlx-lm's model holds it.
        matrices: What every method stores anew.
        task: The same for mlx-lm's quantisers.
        planned: Seconds that the plans took which were made here.
        used: Seconds that the plans took which were used, by format, whenever they were made.
    """

    def __init__(
        self, setting: Setting, checkpoint: Checkpoint, steps: int, rates: tuple[float, ...]
    ) -> None:
        self.setting, self.checkpoint, self.steps = setting, checkpoint, steps
        self.source = Source.of(checkpoint)
        self.matrices = tuple(
            plannable(self.source, exclude=setting.exclude, embeddings=setting.embeddings)
        )
        paths = frozenset(module_path(m.name) for m in self.matrices)
        self.task = Task(setting.source, paths, setting.text, steps, rates)
        self.planned = Spent(0.0, 0.0)
        self.used = dict[str, Spent]()
        setting.place.mkdir(parents=True, exist_ok=True)

    @property
    def weights(self) -> int:
        """Entries of the matrices."""
        return sum(m.weights for m in self.matrices)

    @property
    def left_bytes(self) -> int:
        """Bytes of the tensors of the source that are none of the matrices."""
        every = sum(info.nbytes for info in self.checkpoint.tensors.values())
        return every - sum(m.source_bytes for m in self.matrices)

    @cached_property
    def least(self) -> float:
        """The fewest bits per weight of all matrices: least bits, largest groups."""
        nbytes = [
            min(packed_bytes(m.shape, b, size, m.dtype) for b, size in backbones_of(m, Choices()))
            for m in self.matrices
        ]
        return (
            8
            * sum(n * m.matrices for n, m in zip(nbytes, self.matrices, strict=True))
            / self.weights
        )

    def check_budget(self, budget: float) -> None:
        """Refuse a budget that the least bits and the largest groups exceed.

        Raises:
            Unsupported: If they do.
        """
        if budget < self.least:
            raise Unsupported(
                f"{budget:g} bits per weight are too few: 2 bits in the largest groups that "
                f"divide the inputs take {self.least:.3f}"
            )

    @cached_property
    def study(self) -> Study:
        """The Grams that a plan leaves."""
        file = self.plan(FIRST)
        return Study(
            self.checkpoint, self.matrices, GramFile(file.with_name(read_plan(file).grams[0]))
        )

    def plan(self, format: str, budget: float | None = None) -> Path:
        """Return the plan of a format for all budgets, made when it is first asked for.

        All of them read the Grams of the first. A budget that a plan does not hold is added to it,
        by pricing again.
        """
        if budget is not None:
            self.check_budget(budget)
        file = self.setting.place / f"{format}.json"
        held = [plan.budget for plan in read_plan(file).budgets] if file.exists() else []
        if not held or (budget is not None and budget not in held):
            if format != FIRST and not held:
                grams = self.plan(FIRST).with_suffix(".grams.npz")
                if not file.with_suffix(".grams.npz").exists():
                    file.with_suffix(".grams.npz").hardlink_to(grams)
            asked = {*held, *self.setting.budgets, *([] if budget is None else [budget])}
            self._make(file, format, sorted(b for b in asked if b >= self.least))
        self.used[format] = _seconds(file)
        if format != FIRST:
            self.used[FIRST] = _seconds(self.setting.place / f"{FIRST}.json")
        return file

    def _make(self, file: Path, format: str, budgets: list[float]) -> None:
        """Write a plan, and beside it the seconds it took; of one made anew the longer."""
        taken, _ = spent(
            lambda: plan_checkpoint(
                self.setting.source,
                file,
                calibration=self.setting.text,
                budgets=budgets,
                format=format,
                exclude=self.setting.exclude,
                embeddings=self.setting.embeddings,
                force=True,
            )
        )
        before = _seconds(file) if _meter(file).exists() else taken
        write_json(_meter(file), max(taken, before)._asdict())
        self.planned = Spent(self.planned.cpu + taken.cpu, self.planned.wall + taken.wall)


def _meter(file: Path) -> Path:
    return file.with_suffix(".seconds.json")


def _seconds(file: Path) -> Spent:
    return Spent(**json.loads(_meter(file).read_text(encoding="utf-8")))


Method = Callable[[BakeOff, Path, Any], Written]
"""Writes what it makes of one budget."""


def whole_bits(budget: float) -> int:
    """Return the bits that take ``budget`` bits per weight with their scales."""
    bits = budget - SCALES
    if bits not in BITS:
        raise Unsupported(f"no whole bits take {budget:g} bits per weight in groups of 64")
    return int(bits)


def packing(budget: float, matrices: Sequence[Candidate]) -> tuple[int, int]:
    """Return the bits and the group size, 64 or 128, that take so many bits per weight."""
    for group_size in (GROUP, 2 * GROUP):
        bits = budget - SCALES * GROUP / group_size
        fits = all(m.shape[1] % group_size == 0 for m in matrices)
        if bits in BITS and fits:
            return int(bits), group_size
    raise Unsupported(f"no bits in groups of 64 or 128 take {budget:g} per weight of all matrices")
