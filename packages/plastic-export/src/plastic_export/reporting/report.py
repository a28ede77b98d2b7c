"""The output of ``plastic report``."""

from __future__ import annotations

from rich.table import Table

from plastic_export.reporting.run_report import Report, facts
from plastic_export.reporting.tables import Presented, figures
from plastic_export.training.history import History


def present_report(result: Report) -> Presented:
    """Show the run in a few facts, and the files that were written about it."""
    files = [str(file) for file in (result.page, *result.pictures)]
    record = {"page": files[0], "pictures": files[1:], **facts(result.history)}
    written = [f"written    {file}" for file in files]
    return Presented(record, [run_table(result.history), "", *written])


def run_table(history: History) -> Table:
    """Return the facts of a run as a table."""
    table = figures("run", history.name, text=2)
    for name, value in facts(history).items():
        table.add_row(name, value)
    return table
