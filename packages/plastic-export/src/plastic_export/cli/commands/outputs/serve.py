"""``plastic serve``."""

from __future__ import annotations

from pathlib import Path

import click

from plastic_export.cli.console import Output
from plastic_export.cli.options import FOLDER, json_option, size_option
from plastic_export.reporting.serve import present_server
from plastic_export.serving.size_server import SizeServer

MEMORY = (
    "Memory that weights and caches may take, such as 6GB. Requests that name no size get the "
    "largest of those listed that leaves room for what all at hand may need."
)


@click.command("serve", short_help="Serve a compressed folder at any size.")
@click.argument("folder", type=FOLDER)
@click.argument("stock", nargs=-1, type=click.UNPROCESSED)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen at; 0 takes a free one.",
)
@size_option("--memory", help=MEMORY)
@click.option("--page", is_flag=True, help="Serve a page, at /, that compares two sizes.")
@json_option()
def serve_command(
    folder: Path,
    stock: tuple[str, ...],
    host: str,
    port: int,
    memory: int | None,
    page: bool,
    as_json: bool,
) -> None:
    """Serve FOLDER, a compressed folder, with the server of mlx-lm, at any size.

    A request names its size in its model, as in name@0.5, or in the field "plastic", as in
    {"keep": 0.5}. After --, STOCK are options of mlx_lm.server, such as --temp 0.7. Ctrl-C or
    SIGTERM lets it finish what it has begun to answer; a second one ends it at once.
    """
    output = Output(as_json)
    with SizeServer(folder, host=host, port=port, memory=memory, page=page, stock=stock) as server:
        output.show(present_server(server, page=page))
        server.wait()
        output.say("stopping: what was begun is finished first")
    output.say("stopped")
