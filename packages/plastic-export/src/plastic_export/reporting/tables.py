"""The tables that the ``plastic`` command prints, and their records for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from plastic_runtime import format_bytes
from rich.markup import escape
from rich.table import Table

from plastic_export.compression.by_rank import Compressed
from plastic_export.compression.restoration import Restored
from plastic_export.compression.summary import Summary
from plastic_export.evaluation.estimates import Evaluation
from plastic_export.evaluation.intervals import Interval

MEASURES = ("nll", "perplexity", "kl", "top1")


def figures(*columns: str, text: int = 1) -> Table:
    """A plain table; the first ``text`` columns are words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < text else "right", overflow="fold")
    return table


def compressed_record(result: Compressed) -> dict[str, Any]:
    """The result of ``plastic compress`` as JSON."""
    return {
        "out": str(result.out),
        "strategy": result.plan.strategy,
        "keep": result.plan.keep,
        "kept": result.plan.kept,
        "removed": 1 - result.plan.kept,
        "source_bytes": result.source_bytes,
        "model_bytes": result.model_bytes,
        "sleep_bytes": result.sleep_bytes,
        "exact_bytes": result.exact_bytes,
        "matrices": [asdict(r) for r in result.matrices],
    }


def compressed(result: Compressed, format: str) -> list[Table | str]:
    """What ``plastic compress`` prints."""
    numbers = ("shape", "rank", "asleep", "awake", "of dense", "rel. error", "restored to")
    table = figures("matrix", *numbers)
    for r in result.matrices:
        table.add_row(
            r.name.removesuffix(".weight"),
            "{} x {}".format(*r.shape),
            "dense" if r.choice == "dense" else str(r.rank),
            str(r.parked),
            format_bytes(r.awake_bytes),
            f"{r.awake_bytes / r.source_bytes:.1%}",
            f"{r.relative_error:.4f}",
            "exact" if r.restored_error == 0 else f"{r.restored_error:.1e}",
        )
    plan = result.plan
    lines: list[Table | str] = [
        table,
        "",
        f"matrices   {format_bytes(plan.source_bytes)} -> {format_bytes(plan.awake_bytes)} awake: "
        f"kept {plan.kept:.1%}, removed {1 - plan.kept:.1%} (asked to keep {plan.keep:.1%})",
        f"checkpoint {format_bytes(result.source_bytes)} -> {format_bytes(result.model_bytes)} in "
        f"model files, {format_bytes(result.sleep_bytes)} asleep beside them",
    ]
    if result.exact_bytes:
        lines.append(exact_line(result.exact_bytes, result.source_bytes))
    if format == "dense":
        lines.append("dense format: the file is as large as the source, the rank is lower")
    else:
        lines.append(
            f"run it     mlx_lm.generate --model {result.out} --trust-remote-code --prompt ..."
        )
    return lines


def exact_line(exact_bytes: int, source_bytes: int) -> str:
    """What ``--exact`` costs."""
    return (
        f"exact      {format_bytes(exact_bytes)} beside them, {exact_bytes / source_bytes:.1%} of "
        "the source: `plastic restore` gives back every bit of it"
    )


def evaluation_record(r: Evaluation) -> dict[str, Any]:
    """One result of ``plastic evaluate`` as JSON; all of them are a list of these.

    ``checkpoint`` and ``text``; the numbers ``windows`` and ``tokens``; for each of ``nll``,
    ``perplexity``, ``kl`` and ``top1`` its value, its standard error ``..._error`` and its 95 %
    limits ``..._interval``, a list of two; ``difference``, an object with ``measure`` ("kl" or
    "nll"), ``mean``, ``error``, ``interval`` and ``verdict`` ("better", "worse" or "no difference
    shown"). Units as in `Evaluation` and `Difference`. What is not known is null: kl and top1
    without a reference, the difference of the first checkpoint, errors and limits of one window.
    """
    intervals = {f"{name}_interval": getattr(r, f"{name}_interval") for name in MEASURES}
    difference = None
    if r.difference is not None:
        difference = asdict(r.difference) | {"verdict": r.difference.verdict}
    return asdict(r) | intervals | {"difference": difference}


def evaluations(results: Sequence[Evaluation]) -> list[Table | str]:
    """What ``plastic evaluate`` prints: one row per text and checkpoint, then the differences."""
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
    return [table, *_differences(results), "", note]


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
    """``value [low, high]``, as far as they are known."""
    if value is None:
        return "-"
    if interval is None:
        return f"{value / unit:{form}}"
    low, high = interval
    return escape(f"{value / unit:{form}} [{low / unit:{form}}, {high / unit:{form}}]")


def restored(result: Restored) -> str:
    """What ``plastic restore`` prints."""
    worst = max(result.bounds.items(), key=lambda item: item[1], default=None)
    lines = [f"{result.dest}: {len(result.exact)} tensors bit for bit as in the source"]
    if result.proved:
        lines[0] += ", all of them: each has the SHA-256 it had there"
    if worst is not None:
        lines.append(
            f"{len(result.bounds)} matrices with every component awake: relative error at most "
            f"{worst[1]:.2e} ({worst[0]})"
        )
    return "\n".join(lines)


def summary(s: Summary) -> list[Table | str]:
    """What ``plastic inspect`` prints."""
    head = (
        f"{s.name}: {s.model_type}, {s.parameters:,} parameters in {s.tensors} tensors, "
        f"{format_bytes(s.nbytes)}, {', '.join(f'{k} {v}' for k, v in s.dtypes.items())}"
    )
    table = figures("matrices", "count", "shape", "bytes", "break-even rank")
    for g in s.groups:
        shape = "{} x {}".format(*g.shape)
        table.add_row(g.name, str(g.count), shape, format_bytes(g.nbytes), str(g.break_even))
    lines: list[Table | str] = [head, "", table]
    if s.spectra:
        spectra = figures(
            "matrix", "stable", "effective", "90 % energy", "99 % energy", "threshold"
        )
        for name, x in s.spectra.items():
            ranks = (str(rank) for rank in (x.energy_90, x.energy_99, x.threshold))
            spectra.add_row(name, f"{x.stable:.1f}", f"{x.effective:.1f}", *ranks)
        lines += ["", spectra]
    return lines
