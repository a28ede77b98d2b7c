"""The tables of the board, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bakeoff.setting import shown
from kept.measurements import STOPPED
from rich import box
from rich.table import Table

from board.results import Comparable, KeptRow

UNIT = 1e-3  # nats per token in a millinat


def row_table(name: str, group: Comparable) -> Table:
    """Return one table: a line per row, fewest bytes first."""
    rows, texts = group.tables[name], [*group.shared["texts"]]
    has_tail = any(row.each("kl_999") for row in group.measured(name))
    table = Table(box=box.MARKDOWN)
    for column in ("budget", "method", "model files, bytes", "bits per weight", "predicted"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for text in texts:
        tail = ["99.9 %"] if has_tail else []
        for column in (f"{text}: KL", *tail, "top-1", "perplexity"):
            table.add_column(column, justify="right")
    table.add_column("processor, s", justify="right")
    for row in rows:
        if row.is_measured:
            table.add_row(*_cells(row, texts, has_tail=has_tail))
        else:
            table.add_row(shown(row.budget), f"{row.label}: stopped after {row.figures[STOPPED]} s")
    return table


def _cells(row: KeptRow, texts: list[str], *, has_tail: bool) -> Iterator[str]:
    figures = row.figures
    yield from (shown(row.budget), row.label, f"{figures['nbytes']:,}")
    yield f"{figures['bits_per_weight']:.3f}"
    yield _millinats(figures["predicted"])
    for text in texts:
        seen = figures["texts"][text]
        error = "" if seen["kl_error"] is None else f" ± {_millinats(seen['kl_error'])}"
        yield f"{_millinats(seen['kl'])}{error}"
        if has_tail:
            yield _millinats(seen["kl_999"])
        yield f"{seen['top1']:.2%}"
        yield f"{seen['perplexity']:.3f}"
    yield f"{figures['seconds']['cpu']:,.0f}"


def _millinats(nats: float | None) -> str:
    return "" if nats is None else f"{nats / UNIT:#.4g}".rstrip(".")


def about(group: Comparable) -> Iterator[str]:
    """Yield what all rows share, and the versions that made them, a line of Markdown each."""
    rows = [row.figures for name in group.tables for row in group.measured(name)]
    if not rows:
        return
    shared, first = group.shared, rows[0]
    kept_out = "".join(f", without {name}" for name in shared["exclude"])
    embeddings = "in the budget" if shared["embeddings"] else "left as they are"
    yield f"- model: {first['model']}, {shared['source'][:12]}; embeddings {embeddings}{kept_out}"
    yield f"- calibration: {_calibration(shared['calibration'])}"
    windows, window = shared["measured"]
    for text, digest in shared["texts"].items():
        seen = first["texts"][text]
        yield (
            f"- {text}: {digest[:12]}, {seen['tokens']:,} tokens scored, at most {windows} windows "
            f"of {window}; perplexity of the source {seen['reference']:.3f}; "
            f"settings {seen['settings']}"
        )
    versions = dict[str, set[str]]()
    for row in rows:
        for package, found in row["versions"].items():
            versions.setdefault(package, set()).add(found)
    named = (f"{package} {', '.join(sorted(each))}" for package, each in sorted(versions.items()))
    yield f"- versions: {', '.join(named)}; computed on {first['device']}"


def _calibration(record: dict[str, Any]) -> str:
    amount = f"at most {record['windows']} windows of {record['window']} tokens"
    shipped = record.get("set")
    name = f"{shipped['name']} {shipped['version']}, " if shipped else ""
    return f"{name}{record['sha256'][:12]}, {amount}, the same for every method"
