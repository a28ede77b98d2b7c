"""The output of ``plastic report``."""

from __future__ import annotations

from plastic_export.reporting.pages.run_facts import run_record, run_table
from plastic_export.reporting.pages.run_page import Report
from plastic_export.reporting.tables import Presented


def present_report(result: Report) -> Presented:
    """Show the run in a few facts, and the files that were written about it."""
    files = [str(file) for file in (result.page, *result.pictures)]
    record = {"page": files[0], "pictures": files[1:], **run_record(result.history)}
    written = [f"written    {file}" for file in files]
    return Presented(record, [run_table(result.history), "", *written])
