"""``plastic report``."""

from __future__ import annotations

from pathlib import Path

import click

from plastic_export.cli.console import Output
from plastic_export.cli.options import FOLDER, TEXT, json_option
from plastic_export.reporting.pages.compression_page import report_compression
from plastic_export.reporting.pages.compression_view import is_compression
from plastic_export.reporting.pages.report import present_compression, present_report
from plastic_export.reporting.pages.run_page import report


@click.command("report", short_help="Draw a training run, a compression or a plan.")
@click.argument("place", metavar="RUN|OUT|PLAN", type=FOLDER)
@click.option("--losses", type=TEXT, help="Loss log beside a file of events.")
@click.option("--plan", type=TEXT, help="The plan that OUT was made by, for sizes and quality.")
@click.option(
    "--evaluation", type=TEXT, help="What `plastic evaluate --json` printed: its figures, too."
)
@click.option(
    "--out", type=FOLDER, help="Folder for the page and its pictures; else RUN, or beside the rest."
)
@json_option()
def report_command(
    place: Path,
    losses: Path | None,
    plan: Path | None,
    evaluation: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Draw a training run, a compression or a plan: one HTML page, whole in itself, and PNGs.

    RUN is a folder of `plastic train`, still training or not, or the file of events that a
    PlasticityManager logged. OUT is a folder of `plastic compress`, in any format, and PLAN a file
    of `plastic plan`. The pictures need matplotlib, the extra `plots`.
    """
    output = Output(as_json)
    if is_compression(place):
        if losses is not None:
            raise click.UsageError("--losses is about a training run; drop it")
        output.show(
            present_compression(report_compression(place, out, plan=plan, evaluation=evaluation))
        )
        return
    for option, given in (("--plan", plan), ("--evaluation", evaluation)):
        if given is not None:
            raise click.UsageError(f"{option} is about a compression, and {place} is none; drop it")
    output.show(present_report(report(place, out, losses=losses)))
