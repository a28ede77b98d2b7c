"""``plastic push``."""

from __future__ import annotations

from pathlib import Path

import click
from plastic_core.files import FormatError
from plastic_runtime.dialling import MANIFEST

from plastic_export.cli.console import Output
from plastic_export.cli.options import FOLDER, json_option
from plastic_export.compression.verification import verify
from plastic_export.hub.push import push
from plastic_export.reporting.push import present_pushed


@click.command("push", short_help="Upload an output or a run to the Hub.")
@click.argument("src", type=FOLDER)
@click.argument("repository")
@click.option("--public", is_flag=True, help="Let anybody see a new repository.")
@click.option("--update", is_flag=True, help="Add a commit to a repository that holds files.")
@click.option("--with-sleep", is_flag=True, help="Also upload what `plastic restore` needs.")
@click.option("--dry-run", is_flag=True, help="Only list the files and their bytes.")
@json_option()
def push_command(src: Path, repository: str, as_json: bool, dry_run: bool, **how: bool) -> None:
    """Upload SRC, which compress, heal or train wrote, to REPOSITORY (owner/name) in the Hub.

    A new repository is private. Only files that plastic wrote are taken, and shown in one commit at
    the end; if the connection breaks, the same command goes on.
    """
    output = Output(as_json)
    is_output = (src / MANIFEST).is_file()
    if is_output and not dry_run and (defects := verify(src, track=output.track)):
        raise FormatError(defects[0])
    output.show(present_pushed(push(src, repository, dry_run=dry_run, track=output.track, **how)))
