"""The tables of a set of runs: one row per size and method, and the goals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median, stdev

from rich.table import Table

from training.methods import DIALLED, METHODS
from training.setting import RunResult


def method_table(results: list[RunResult]) -> Table:
    """One row per size and method; the step is over that of the fixed rank."""
    columns = ("bytes of rank", "method", "seeds", "bytes", "at the start", "loss", "old", "step")
    rows = Table(*columns, title="Training", box=None)
    for rank in sorted({r.rank for r in results}):
        fixed = [r.step for r in results if (r.method, r.rank) == ("lora", rank)]
        for method in (*METHODS, DIALLED):
            own = [r for r in results if (r.method, r.rank) == (method, rank)]
            if own:
                old = " / ".join(f"{mean(x):.3f}" for x in zip(*(r.old for r in own), strict=True))
                step = median(r.step for r in own)
                rows.add_row(
                    str(rank),
                    method,
                    str(len(own)),
                    f"{own[0].nbytes:,}",
                    f"{own[0].most:,}",
                    spread([r.loss for r in own]),
                    old,
                    f"{step / median(fixed):.2f}" if fixed else "",
                )
    return rows


def aim_table(results: list[RunResult]) -> Table:
    """Return the goals, and what this run shows."""
    rows = Table("what", "target", "measured", "met", title="Targets", box=None)

    def row(what: str, target: str, measured: str, met: bool) -> None:
        rows.add_row(what, target, measured, "yes" if met else "no")

    losses: dict[tuple[str, int], list[float]] = {}
    old: dict[tuple[str, int], float] = {}
    for r in results:
        losses.setdefault((r.method, r.rank), []).append(r.loss)
    for key in losses:
        old[key] = mean(mean(r.old) for r in results if (r.method, r.rank) == key)
    for rank in sorted({r.rank for r in results}):
        for name in ("plastic", DIALLED):
            fixed, ours = losses.get(("lora", rank)), losses.get((name, rank))
            if fixed and ours:
                gap = mean(fixed) - mean(ours)
                noise = sum(stdev(x) if len(x) > 1 else 0.0 for x in (fixed, ours))
                what = f"{name}: loss below fixed rank {rank}, nats"
                row(what, "> spread", f"{gap:.3f} (spread {noise:.3f})", gap > noise)
                more = old[name, rank] - old["lora", rank]
                what = f"{name}: old texts above fixed rank {rank}, nats"
                row(what, "<= 0", f"{more:.3f}", more <= 0)
    share, where = bytes_to_reach(results, 16)
    row(f"bytes to reach the loss of rank 16 ({where})", "<= 60%", f"{share:.0%}", share <= 0.6)
    mine = [r for r in results if r.method == "plastic"]
    if mine:
        between, change = (max(r.between for r in mine), median(r.change for r in mine))
        row("time between changes, over a step", "<= 2%", f"{between:.2%}", between <= 0.02)
        row("time of a change, in steps", "<= 3", f"{change:.1f}", change <= 3)
    return rows


def bytes_to_reach(results: list[RunResult], rank: int) -> tuple[float, str]:
    """The fewest of our bytes whose loss is that of a fixed rank or less, over its bytes."""
    fixed = [r for r in results if (r.method, r.rank) == ("lora", rank)]
    goal = mean(r.loss for r in fixed) if fixed else -math.inf
    for own in sorted({r.rank for r in results if r.method == "plastic"}):
        ours = [r for r in results if (r.method, r.rank) == ("plastic", own)]
        if mean(r.loss for r in ours) <= goal:
            return ours[0].nbytes / fixed[0].nbytes, f"the bytes of rank {own}"
    return math.inf, "never"


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"
