"""The output of ``plastic evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from plastic_export.evaluation.estimates import Evaluation
from plastic_export.evaluation.intervals import Interval
from plastic_export.reporting.tables import Presented, figures

MEASURES = ("nll", "perplexity", "kl", "top1")


def present_evaluations(results: Sequence[Evaluation]) -> Presented:
    """Show one row per text and checkpoint, then the differences from the first checkpoint."""
    return Presented([_record(r) for r in results], _lines(results))


def _record(r: Evaluation) -> dict[str, Any]:
    """Return one result of ``plastic evaluate`` as JSON; all of them are a list of these.

    ``checkpoint`` and ``text``; the numbers ``windows`` and ``tokens``; for each of ``nll``,
    ``perplexity``, ``kl`` and ``top1`` its value, its standard error ``..._error`` and its 95 %
    limits ``..._interval``, a list of two; ``difference``, an object with ``measure`` ("kl" or
    "nll"), ``mean``, ``error``, ``interval`` and ``verdict`` ("better", "worse" or "no difference
    shown"); ``vocabulary``, ``padding`` and ``overflows``. Units as in `Evaluation` and
    `Comparison`. What is not known is null: kl and top1 without a reference, the difference of the
    first checkpoint, errors and limits of one window.
    """
    intervals = {f"{name}_interval": getattr(r, f"{name}_interval") for name in MEASURES}
    difference = None
    if r.difference is not None:
        difference = asdict(r.difference) | {"verdict": r.difference.verdict}
    return asdict(r) | intervals | {"difference": difference}


def _lines(results: Sequence[Evaluation]) -> list[Table | str]:
    numbers = ("tokens", "perplexity", "KL to reference, mnat", "top-1 agreement")
    table = figures("text", "checkpoint", *numbers, text=2)
    for r in results:
        table.add_row(
            escape(r.text),
            escape(r.checkpoint),
            str(r.tokens),
            _with_interval(r.perplexity, r.perplexity_interval, ".3f"),
            _with_interval(r.kl, r.kl_interval, ".3f", unit=1e-3),
            _with_interval(r.top1, r.top1_interval, ".2%"),
        )
    note = "in brackets: 95 % confidence intervals, Student's t over the windows"
    return [table, *_differences(results), "", note, *_padding(results), *_overflows(results)]


def _overflows(results: Sequence[Evaluation]) -> list[Table | str]:
    """Name the checkpoints that are finite in float32 alone."""
    names = dict.fromkeys(escape(r.checkpoint) for r in results if r.overflows)
    return [f"not finite as stored, in float16: {', '.join(names)}"] if names else []


def _padding(results: Sequence[Evaluation]) -> list[Table | str]:
    """Say what took no part in any softmax."""
    padding = max(r.padding for r in results)
    compared = f"compared on the {results[0].vocabulary} tokens that all know"
    return [f"{compared}; {padding} rows of padding take no part"] if padding else []


def _differences(results: Sequence[Evaluation]) -> list[Table | str]:
    """Each checkpoint against the first, if there are several."""
    compared = [(r, r.difference) for r in results if r.difference is not None]
    if not compared:
        return []
    measure = compared[0][1].measure.upper()
    against = f"{measure} - that of {escape(results[0].checkpoint)}, mnat"
    table = figures("text", "checkpoint", against, "verdict", text=2)
    for r, d in compared:
        difference = _with_interval(d.mean, d.interval, "+.3f", unit=1e-3)
        table.add_row(escape(r.text), escape(r.checkpoint), difference, d.verdict)
    return ["", table]


def _with_interval(
    value: float | None, interval: Interval | None, form: str, *, unit: float = 1
) -> str:
    """Write ``value [low, high]``, as far as they are known."""
    if value is None:
        return "-"
    if interval is None:
        return f"{value / unit:{form}}"
    low, high = interval
    return escape(f"{value / unit:{form}} [{low / unit:{form}}, {high / unit:{form}}]")
