"""``plastic export``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from plastic_export.cli.console import Output
from plastic_export.cli.options import FOLDER, json_option, revision_option
from plastic_export.reporting.export import present_exported
from plastic_export.shipping.exporting import export
from plastic_export.shipping.request import Piece
from plastic_export.shipping.table import TARGETS

ABOUT = " ".join(f"{name}: {target.about}." for name, target in TARGETS.items())


@click.command("export", short_help="Write it for another program.")
@click.argument("src")
@click.argument("dest", type=FOLDER)
@click.option("--to", type=click.Choice(list(TARGETS)), required=True, help=ABOUT)
@click.option(
    "--type",
    "type_",
    help="Type of the weights: f32, f16, bf16, for gguf also q8_0; by default what is stored.",
)
@click.option("--base", help="The checkpoint of an adapter, if it is not the one that it names.")
@click.option(
    "--piece",
    type=click.Choice(get_args(Piece)),
    help="What of a base and its adapter is written; by default whole, of a run the adapter.",
)
@click.option("--uniform", is_flag=True, help="One rank for all: of peft, for vLLM and SGLang.")
@revision_option()
@json_option()
def export_command(
    src: str,
    dest: Path,
    to: str,
    type_: str | None,
    base: str | None,
    piece: Piece | None,
    uniform: bool,
    revision: str | None,
    as_json: bool,
) -> None:
    """Write SRC (a checkpoint, an output, a run, an adapter) to DEST for another program."""
    output = Output(as_json)
    done = export(
        src,
        dest,
        to=to,
        type=type_,
        base=base,
        piece=piece,
        revision=revision,
        uniform=uniform,
        track=output.track,
    )
    output.show(present_exported(done))
