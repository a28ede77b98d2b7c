"""The tables of runs that can be compared: a row per size, method and setting, and the targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from training.tables import spread

from finetune.asked import OWN, SHARED, TUNED_AT, KeptRun
from finetune.making import ADAPTERS, OURS

OwnSettings = tuple[tuple[str, Any], ...]
HEADED = ("lora+head",)


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
    return sorted(made, key=lambda e: (e.rank, order.index(e.method), e.own, e.rate))


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


def adapter_targets(runs: Sequence[KeptRun]) -> Table:
    """Return the goals of the issue, and what these runs show."""
    rows = Table("what", "target", "measured", "met", title="Targets", box=None)

    def row(what: str, target: str, measured: str, met: bool) -> None:
        rows.add_row(what, target, measured, "yes" if met else "no")

    best = [e for e in at_best_rates(runs) if e.method != "base"]
    ours = {e.rank: e for e in best if e.method == OURS}
    peers = [e for e in best if e.method != OURS]
    for rank, mine in ours.items():
        others = [e for e in peers if e.rank == rank]
        if others:
            peer = min(others, key=lambda e: e.loss)
            gap = peer.loss - mine.loss
            noise = sum(stdev(e.losses) if len(e.runs) > 1 else 0.0 for e in (mine, peer))
            what = f"loss below the best peer at the bytes of rank {rank} ({peer.name}), nats"
            seeds = min(len(mine.runs), len(peer.runs))
            row(what, "> spread", f"{gap:.3f} (spread {noise:.3f}, {seeds} seeds)", gap > noise)
    for without, most in (((), 0.5), (HEADED, 0.75)):
        goal = [e for e in peers if e.rank == 16 and e.method not in without]
        if goal:
            peer = min(goal, key=lambda e: e.loss)
            reached = [e.nbytes for e in ours.values() if e.loss <= peer.loss]
            share = min(reached, default=math.inf) / peer.nbytes
            what = f"bytes to reach the loss of rank 16 of {peer.name}"
            row(what, f"<= {most:.0%}", f"{share:.0%}" if reached else "never", share <= most)
    lora = sorted((e for e in entries(runs) if e.method == "lora"), key=lambda e: e.loss)
    for mine in ours.values():
        known = forgotten_at(lora, mine.loss)
        if known is not None:
            more = mean(mine.old) - known
            what = f"old texts above LoRA's at the same task loss, bytes of rank {mine.rank}, nats"
            row(what, "<= 0", f"{more:.3f}", more <= 0)
    if ours:
        changes = [run.found["change"] for e in ours.values() for run in e.runs]
        betweens = [run.found["between"] for e in ours.values() for run in e.runs]
        row("time of a change, in steps", "<= 3", f"{median(changes):.1f}", median(changes) <= 3)
        between = max(betweens)
        row("time between changes, over a step", "<= 2%", f"{between:.2%}", between <= 0.02)
    return rows


def at_best_rates(runs: Sequence[KeptRun]) -> list[SizeEntry]:
    """Return for every method and size the entry at the rate that rank 8 chose."""
    every, chosen = entries(runs), dict[str, SizeEntry]()
    for e in every:
        if e.rank == TUNED_AT and (e.method not in chosen or first(e) < first(chosen[e.method])):
            chosen[e.method] = e
    return [
        e
        for e in every
        if e.method in chosen and (e.rate, e.own) == (chosen[e.method].rate, chosen[e.method].own)
    ]


def first(entry: SizeEntry) -> float:
    """Return the loss of the first seed, which rates are chosen by."""
    return next((r.found["loss"] for r in entry.runs if r.asked["seed"] == 0), math.inf)


def forgotten_at(lora: Sequence[SizeEntry], loss: float) -> float | None:
    """Return the loss on old texts between LoRA's runs at a task loss; None outside of them."""
    task = [e.loss for e in lora]
    if not task or not task[0] <= loss <= task[-1]:
        return None
    return float(np.interp(loss, task, [mean(e.old) for e in lora]))
