"""``plastic restore``."""

from __future__ import annotations

from pathlib import Path

import click

from plastic_export.cli.console import Output
from plastic_export.cli.options import FOLDER, check_option, json_option
from plastic_export.compression.restoration import restore
from plastic_export.reporting.restore import present_restored


@click.command("restore", short_help="Wake everything, write it dense.")
@click.argument("src", type=FOLDER)
@click.argument("out", type=FOLDER)
@check_option()
@json_option()
def restore_command(src: Path, out: Path, check: bool, as_json: bool) -> None:
    """Wake everything in SRC, a compressed folder, and write it dense to the folder OUT.

    What was compressed with --exact comes back bit for bit, which its digests prove. Through
    anything else one window of text runs before it is published.
    """
    output = Output(as_json)
    output.show(present_restored(restore(src, out, check=check, track=output.track)))
