"""The table of runs that can be compared: a row per size, method and setting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import mean, median
from typing import Any, NamedTuple

from rich.table import Table
from training.tables import spread

from finetune.asked import OWN, SHARED, TUNED_AT, KeptRun
from finetune.making import ADAPTERS

OwnSettings = tuple[tuple[str, Any], ...]


class SizeEntry(NamedTuple):
    """The runs of a method at one size, rate and setting of its own, one per seed."""

    method: str
    rank: int
    rate: float
    own: OwnSettings
    runs: tuple[KeptRun, ...]

    @property
    def losses(self) -> list[float]:
        """The losses on the task."""
        return [run.found["loss"] for run in self.runs]

    @property
    def loss(self) -> float:
        """Their mean."""
        return mean(self.losses)

    @property
    def old(self) -> list[float]:
        """The mean loss on each text that the base knows."""
        return [mean(each) for each in zip(*(run.found["old"] for run in self.runs), strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of the file, the largest of all seeds."""
        return max(int(run.found["nbytes"]) for run in self.runs)

    @property
    def name(self) -> str:
        """The method, and what of its own was asked for."""
        return ", ".join([self.method, *(f"{name} {value}" for name, value in self.own)])


def comparable(runs: Iterable[KeptRun]) -> list[list[KeptRun]]:
    """Return runs whose base, texts and steps are the same, together."""
    groups: dict[str, list[KeptRun]] = {}
    for run in runs:
        key = [run.asked.get(name) for name in (*SHARED, "base", "texts")]
        groups.setdefault(str(key), []).append(run)
    return list(groups.values())


def entries(runs: Iterable[KeptRun]) -> list[SizeEntry]:
    """Return the runs by size, method and rate, in the order of the methods."""
    found: dict[tuple[str, int, float, OwnSettings], list[KeptRun]] = {}
    for run in runs:
        asked = run.asked
        own = tuple((name, asked[name]) for name in OWN if asked.get(name) is not None)
        found.setdefault((asked["method"], asked["rank"], asked["rate"], own), []).append(run)
    made = [SizeEntry(*key, tuple(kept)) for key, kept in found.items()]
    order = list(ADAPTERS)
    return sorted(made, key=lambda e: (e.rank, order.index(e.method), e.name, e.rate))


def adapter_table(runs: Sequence[KeptRun]) -> Table:
    """One row per size, method and rate; bytes are those of the file that mlx-lm loads."""
    names = ("bytes of rank", "method", "rate", "seeds", "bytes", "loss", "prose / code", "s/step")
    asked = runs[0].asked
    title = ", ".join(f"{name} {asked[name]}" for name in (*SHARED, "base"))
    rows = Table(*names, title=title, box=None)
    for e in entries(runs):
        rows.add_row(
            str(e.rank),
            e.name,
            f"{e.rate:g}",
            str(len(e.runs)),
            f"{e.nbytes:,}",
            spread(e.losses),
            " / ".join(f"{loss:.3f}" for loss in e.old),
            f"{median(run.found['step'] for run in e.runs):.1f}",
        )
    return rows


def at_best_rates(runs: Sequence[KeptRun]) -> list[SizeEntry]:
    """Return for every method and size the entry at the rate that rank 8 chose."""
    every, chosen = entries(runs), dict[str, SizeEntry]()
    for e in every:
        if e.rank == TUNED_AT and (e.name not in chosen or first(e) < first(chosen[e.name])):
            chosen[e.name] = e
    return [e for e in every if e.name in chosen and e.rate == chosen[e.name].rate]


def first(entry: SizeEntry) -> float:
    """Return the loss of the first seed, which rates are chosen by."""
    return next((r.found["loss"] for r in entry.runs if r.asked["seed"] == 0), math.inf)
