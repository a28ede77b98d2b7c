"""What the runs should show, and what they do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import mean, median, stdev
from typing import NamedTuple

import numpy as np
from rich.table import Table

from finetune.asked import KeptRun
from finetune.making import OURS
from finetune.tables import SizeEntry, at_best_rates, entries

HEADED = ("lora+head",)
BASE = "base"


class ShownTarget(NamedTuple):
    """A goal, and what was measured of it."""

    what: str
    target: str
    measured: str
    met: bool


def adapter_targets(runs: Sequence[KeptRun]) -> Table:
    """Return the goals, and what these runs show; one seed meets none that a spread is part of."""
    best = at_best_rates(runs)
    ours = [e for e in best if e.method == OURS]
    peers = [e for e in best if e.method not in (OURS, BASE)]
    rows = Table("what", "target", "measured", "met", title="Targets", box=None)
    for shown in (
        *gains(ours, peers),
        *sizes_to_reach(ours, peers),
        *forgetting(ours, entries(runs)),
        *times_of_changes(ours),
    ):
        rows.add_row(*shown[:3], "yes" if shown.met else "no")
    return rows


def gains(ours: Sequence[SizeEntry], peers: Sequence[SizeEntry]) -> Iterator[ShownTarget]:
    """Compare with the best peer of every size."""
    for mine in ours:
        others = [e for e in peers if e.rank == mine.rank]
        if others:
            peer = min(others, key=lambda e: e.loss)
            gap, seeds = peer.loss - mine.loss, min(len(mine.runs), len(peer.runs))
            noise = stdev(mine.losses) + stdev(peer.losses) if seeds > 1 else math.inf
            what = f"{mine.name}: loss below the best peer of rank {mine.rank} ({peer.name}), nats"
            seen = f"{gap:.3f} (spread {noise:.3f}, {seeds} seeds)" if seeds > 1 else f"{gap:.3f}"
            yield ShownTarget(what, "> spread", seen, gap > noise)


def sizes_to_reach(ours: Sequence[SizeEntry], peers: Sequence[SizeEntry]) -> Iterator[ShownTarget]:
    """Say what share of its bytes reaches the best peer's loss at rank 16, without heads too."""
    for without, most in (((), 0.5), (HEADED, 0.75)):
        large = [e for e in peers if e.rank == 16 and e.method not in without]
        if large:
            peer = min(large, key=lambda e: e.loss)
            reached = [e.nbytes for e in ours if e.loss <= peer.loss]
            share = min(reached, default=math.inf) / peer.nbytes
            what = f"bytes to reach the loss of rank 16 of {peer.name}"
            yield ShownTarget(what, f"<= {most:.0%}", f"{share:.0%}", share <= most)


def forgetting(ours: Sequence[SizeEntry], every: Sequence[SizeEntry]) -> Iterator[ShownTarget]:
    """Compare the loss on old texts with LoRA's at the same task loss."""
    known = [e for e in every if e.method == BASE]
    if not known:
        return
    lora = [e for e in every if e.method == "lora" and e.loss < known[0].loss]
    curve = sorted([*known, *lora], key=lambda e: e.loss)
    task, old = [e.loss for e in curve], [mean(e.old) for e in curve]
    for mine in ours:
        what = f"{mine.name}: old texts above LoRA's at the task loss of rank {mine.rank}, nats"
        if mine.loss < task[0]:
            yield ShownTarget(what, "<= 0", "no LoRA has learnt as much", met=False)
        else:
            more = mean(mine.old) - float(np.interp(mine.loss, task, old))
            yield ShownTarget(what, "<= 0", f"{more:.3f}", more <= 0)


def times_of_changes(ours: Sequence[SizeEntry]) -> Iterator[ShownTarget]:
    """Say what changes of rank, and looking for them, take."""
    runs = [run.found for e in ours for run in e.runs]
    if runs:
        change = median(found["change"] for found in runs)
        between = max(found["between"] for found in runs)
        yield ShownTarget("time of a change, in steps", "<= 3", f"{change:.1f}", change <= 3)
        yield ShownTarget(
            "time between changes, over a step", "<= 2%", f"{between:.2%}", between <= 0.02
        )
