"""``plastic gguf``."""

from __future__ import annotations

import click

from plastic_export.cli.console import Output
from plastic_export.cli.options import json_option, revision_option
from plastic_export.gguf.guide import gguf_guide
from plastic_export.reporting.gguf import present_guide


@click.command("gguf", short_help="Print the way to llama.cpp.")
@click.argument("src")
@revision_option()
@json_option()
def gguf_command(src: str, revision: str | None, as_json: bool) -> None:
    """Print the commands that take SRC (a checkpoint, an output, a run) to llama.cpp.

    Of a Hub id no weights are downloaded.
    """
    output = Output(as_json)
    output.show(present_guide(gguf_guide(src, revision=revision)))
