"""``plastic report``."""

from __future__ import annotations

from pathlib import Path

import click

from plastic_export.cli.console import FOLDER, TEXT, Output, json_option
from plastic_export.reporting.run_report import facts
from plastic_export.reporting.run_report import report as write_report
from plastic_export.reporting.tables import figures


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--losses", type=TEXT, help="Loss log beside a file of events.")
@click.option("--out", type=FOLDER, help="Folder for the page and its pictures; else RUN's.")
@json_option
def report(run: Path, losses: Path | None, out: Path | None, as_json: bool) -> None:
    """Draw the training run RUN: one HTML page that needs nothing else, and PNGs.

    RUN is a folder of `plastic train`, still training or not, or the file of events that a
    PlasticityManager logged.
    """
    output = Output(as_json)
    result = write_report(run, out, losses=losses)
    summary = facts(result.history)
    table = figures("run", result.history.name, text=2)
    for name, value in summary.items():
        table.add_row(name, value)
    files = [str(file) for file in (result.page, *result.pictures)]
    record = {"page": files[0], "pictures": files[1:], **summary}
    output.show(record, table, "", *(f"written    {file}" for file in files))
