"""The output of ``plastic report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plastic_runtime import format_bytes
from rich.table import Table

from plastic_export.reporting.pages.compression_facts import (
    budget_numbers,
    compression_facts,
    compression_record,
)
from plastic_export.reporting.pages.compression_page import CompressionReport
from plastic_export.reporting.pages.compression_view import CompressionView
from plastic_export.reporting.pages.run_facts import run_record, run_sizes_table, run_table
from plastic_export.reporting.pages.run_page import Report
from plastic_export.reporting.tables import Presented, figures


def present_report(result: Report) -> Presented:
    """Show the run in a few facts, and the files that were written about it."""
    history = result.history
    sizes = [run_sizes_table(history.sizes)] if history.sizes else []
    return _presented(result, run_record(history), [run_table(history), *sizes])


def present_compression(result: CompressionReport) -> Presented:
    """Show the compression in a few facts, and the files that were written about it."""
    view = result.view
    return _presented(result, compression_record(view), [_facts(view), _budgets(view)])


def _facts(view: CompressionView) -> Table:
    table = figures(view.name, "", text=2)
    for name, value in compression_facts(view).items():
        table.add_row(name, value)
    return table


def _budgets(view: CompressionView) -> Table:
    table = figures("budget", "bits/weight", "matrices", "of source", "KL, mnat", "as they were")
    for asked in view.matrices:
        numbers = budget_numbers(view, asked)
        kl = numbers["predicted_kl"]
        table.add_row(
            asked,
            f"{numbers['bits_per_weight']:.4f}",
            format_bytes(numbers["bytes"]),
            f"{numbers['bytes'] / numbers['source_bytes']:.1%}",
            "-" if kl is None else f"{1e3 * kl:.4g}",
            f"{numbers['unchanged']} of {numbers['matrices']}",
        )
    return table


def _presented(
    result: Report | CompressionReport, record: dict[str, Any], tables: Sequence[Table]
) -> Presented:
    files: list[Path] = [result.page, *result.pictures]
    names = {"page": str(files[0]), "pictures": [str(file) for file in files[1:]]}
    parts: list[Table | str] = [part for table in tables for part in (table, "")]
    return Presented(names | record, [*parts, *(f"written    {file}" for file in files)])
