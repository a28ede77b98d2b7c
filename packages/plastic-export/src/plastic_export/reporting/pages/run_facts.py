"""A training run in a few facts: words for people, numbers for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from plastic_runtime import RankChange, format_bytes
from plastic_runtime.log import CHANGES
from rich.table import Table

from plastic_export.reporting.tables import figures
from plastic_export.training.history import History
from plastic_export.training.sizes.curve import RunSize

MOST_CHANGES = 20  # changes that a table in the terminal tells of
CHANGE_NAMES = ("step", "layers", "components", "awake", "loss", "judged", "gained", "seconds")
"""Columns of what every change of ranks cost and gained; losses are nats per token."""
SIZE_NAMES = ("bytes", "validation loss", "rank", "layers")
"""Columns of what the adapters are at smaller sizes."""


def run_table(history: History) -> Table:
    """Return the facts of a run as a table."""
    table = figures("run", history.name, text=2)
    for name, value in facts(history).items():
        table.add_row(name, value)
    return table


def facts(history: History) -> dict[str, str]:
    """Return the run in a few words and numbers, in the order in which to print them."""
    told = {f"{history.unit}s": f"{history.steps:,}"}
    if history.valid:
        first, last = history.valid[0][1], history.valid[-1][1]
        step, best = min(history.valid, key=lambda point: point[1])
        told["validation loss"] = f"{first:.4f} at first, {last:.4f} at last"
        told["lowest"] = f"{best:.4f} after step {step:,}"
    if history.layers:
        total = [sum(getattr(layer, end) for layer in history.layers) for end in ("first", "last")]
        ranks = [layer.last for layer in history.layers]
        spread = f"{min(ranks)} to {max(ranks)} per layer"
        told["total rank"] = f"{total[0]:,} at first, {total[1]:,} at last, {spread}"
    if history.awake:
        awake, asleep = (round(series[-1][1]) for series in (history.awake, history.asleep))
        told["awake"] = f"{format_bytes(awake)} ({awake:,} bytes)"
        told["asleep"] = f"{format_bytes(asleep)} ({asleep:,} bytes)"
    if history.max_bytes is not None:
        told["ceiling"] = f"{format_bytes(history.max_bytes)} ({history.max_bytes:,} bytes)"
    counts = [sum(e.action == action for _, e in history.events) for action in CHANGES]
    told["changes"] = "growths {}, shrinks {}, wakings {}".format(*counts)
    return told


def change_table(history: History) -> Table:
    """Return what every change of ranks cost and gained as a table, the last ones if many."""
    shown = history.changes[-MOST_CHANGES:]
    untold = len(history.changes) - len(shown)
    name = f"after {history.unit}" + (f" ({untold} earlier in the report)" if untold else "")
    table = figures(name, *CHANGE_NAMES[1:], text=0)
    for change in shown:
        table.add_row(*change_row(change))
    return table


def run_sizes_table(sizes: Sequence[RunSize]) -> Table:
    """Return what the adapters of a run are at smaller sizes as a table."""
    table = figures(*SIZE_NAMES, text=0)
    for row in map(run_size_row, sizes):
        table.add_row(*row)
    return table


def run_size_row(size: RunSize) -> tuple[str, ...]:
    """Return one size of the adapters in words, in the order of ``SIZE_NAMES``."""
    return f"{size.nbytes:,}", f"{size.loss:.4f}", str(size.rank), str(size.layers)


def change_row(change: RankChange) -> tuple[str, ...]:
    """Return one change of ranks in words, in the order of ``CHANGE_NAMES``."""
    counts = ((change.grown, "+{}"), (change.woken, "+{} woken"), (change.parked, "-{}"))
    awake = format_bytes(change.bytes_after)
    if change.bytes_before is not None:
        awake = f"{format_bytes(change.bytes_before)} to {awake}"
    return (
        f"{change.step:,}",
        f"{change.layers:,}",
        ", ".join(form.format(count) for count, form in counts if count),
        awake,
        _told(change.loss_before, ".4f"),
        _told(change.loss_after, ".4f"),
        _told(change.gained, "+.4f"),
        _told(change.seconds, ".2f"),
    )


def _told(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def run_record(history: History) -> dict[str, Any]:
    """Return the same as numbers, for JSON; what the logs do not tell is null.

    ``unit`` is what ``steps`` counts, "training step" or "validation". Losses are in nats per
    token, ranks those of single layers but for the two sums, bytes those of all factors.
    ``rank_changes`` are those of `RankChange`, ``sizes`` those of `RunSize`.
    """
    valid = [loss for _, loss in history.valid]
    first, last = ([getattr(layer, end) for layer in history.layers] for end in ("first", "last"))
    actions = [e.action for _, e in history.events]
    return {
        "unit": history.unit,
        "steps": history.steps,
        "valid_loss_first": valid[0] if valid else None,
        "valid_loss_last": valid[-1] if valid else None,
        "valid_loss_lowest": min(valid, default=None),
        "step_of_lowest": history.valid[valid.index(min(valid))][0] if valid else None,
        "layers": len(history.layers),
        "total_rank_first": sum(first) if first else None,
        "total_rank_last": sum(last) if last else None,
        "rank_least": min(last, default=None),
        "rank_most": max(last, default=None),
        "bytes_awake": round(history.awake[-1][1]) if history.awake else None,
        "bytes_asleep": round(history.asleep[-1][1]) if history.asleep else None,
        "max_bytes": history.max_bytes,
        "growths": actions.count("grow"),
        "shrinks": actions.count("shrink"),
        "wakings": actions.count("wake"),
        "sizes": [size._asdict() for size in history.sizes],
        "rank_changes": [asdict(change) | {"gained": change.gained} for change in history.changes],
    }
