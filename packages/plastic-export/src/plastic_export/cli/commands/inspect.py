"""``plastic inspect``."""

from __future__ import annotations

import click

from plastic_export.cli.console import Output
from plastic_export.cli.options import json_option, revision_option
from plastic_export.compression.summary import summarize
from plastic_export.reporting.inspect import present_summary


@click.command("inspect", short_help="Show what a checkpoint holds.")
@click.argument("src")
@click.option(
    "--spectra", is_flag=True, help="Also decompose every matrix: what its spectrum says of ranks."
)
@revision_option()
@json_option()
def inspect_command(src: str, spectra: bool, revision: str | None, as_json: bool) -> None:
    """Show what the checkpoint SRC (a folder or a Hub id) holds."""
    output = Output(as_json)
    summary = summarize(src, revision=revision, spectra=spectra, track=output.track)
    output.show(present_summary(summary))
