"""The tables that the ``plastic`` command prints, and their records for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from plastic_runtime import format_bytes
from rich.table import Table

from plastic_export.compression import Compressed
from plastic_export.evaluation import Evaluation
from plastic_export.restoration import Restored
from plastic_export.summary import Summary


def figures(*columns: str, text: int = 1) -> Table:
    """A plain table; the first ``text`` columns are words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < text else "right", overflow="fold")
    return table


def _with_error(value: float | None, error: float | None, form: str) -> str:
    """``value ± standard error``, as far as they are known."""
    if value is None:
        return "-"
    return f"{value:{form}}" if error is None else f"{value:{form}} ± {error:{form}}"


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
    if format == "dense":
        lines.append("dense format: the file is as large as the source, the rank is lower")
    else:
        lines.append(
            f"run it     mlx_lm.generate --model {result.out} --trust-remote-code --prompt ..."
        )
    return lines


def evaluations(results: Sequence[Evaluation]) -> Table:
    """What ``plastic evaluate`` prints: one row per text."""
    numbers = ("tokens", "perplexity", "nats/token", "KL to reference", "top-1 agreement")
    table = figures("text", *numbers)
    for r in results:
        table.add_row(
            r.text,
            str(r.tokens),
            f"{r.perplexity:.3f}",
            _with_error(r.nll, r.nll_error, ".4f"),
            _with_error(r.kl, r.kl_error, ".6f"),
            _with_error(r.top1, r.top1_error, ".2%"),
        )
    return table


def restored(result: Restored) -> str:
    """What ``plastic restore`` prints."""
    worst = max(result.bounds.items(), key=lambda item: item[1], default=None)
    lines = [f"{result.dest}: {len(result.exact)} tensors bit for bit as in the source"]
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
