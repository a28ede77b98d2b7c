"""``plastic report``."""

from __future__ import annotations

from pathlib import Path

import click

from plastic_export.cli.console import Output
from plastic_export.cli.options import FOLDER, TEXT, json_option
from plastic_export.reporting.pages.report import present_report
from plastic_export.reporting.pages.run_page import report


@click.command("report", short_help="Draw a training run.")
@click.argument("run", type=FOLDER)
@click.option("--losses", type=TEXT, help="Loss log beside a file of events.")
@click.option("--out", type=FOLDER, help="Folder for the page and its pictures; else RUN's.")
@json_option()
def report_command(run: Path, losses: Path | None, out: Path | None, as_json: bool) -> None:
    """Draw the training run RUN: one HTML page that needs nothing else, and PNGs.

    RUN is a folder of `plastic train`, still training or not, or the file of events that a
    PlasticityManager logged. The pictures need matplotlib, the extra `plots`.
    """
    Output(as_json).show(present_report(report(run, out, losses=losses)))
