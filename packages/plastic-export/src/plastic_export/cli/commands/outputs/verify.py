"""``plastic verify``."""

from __future__ import annotations

from pathlib import Path

import click
from plastic_core.files import FormatError

from plastic_export.cli.console import Output
from plastic_export.cli.options import FOLDER, json_option
from plastic_export.compression.verification import verify
from plastic_export.reporting.verify import present_defects


@click.command("verify", short_help="Check a folder against its digests.")
@click.argument("folder", type=FOLDER)
@json_option()
def verify_command(folder: Path, as_json: bool) -> None:
    """Check FOLDER, a compressed folder or a sleep store, against its digests."""
    output = Output(as_json)
    defects = verify(folder, track=output.track)
    output.show(present_defects(folder, defects))
    if defects:
        raise FormatError("\n".join(defects))
