"""The output of ``plastic serve``."""

from __future__ import annotations

from plastic_runtime import format_bytes
from rich.table import Table

from plastic_export.reporting.tables import Presented, figures
from plastic_export.serving.size_server import SizeServer


def present_server(server: SizeServer, *, page: bool) -> Presented:
    """Say where a server listens, and at which sizes."""
    record = {
        "url": server.url,
        "model": server.model,
        "priced_in": server.priced_in,
        "sizes": [size._asdict() for size in server.sizes],
    }
    return Presented(record, _lines(server, page=page))


def _lines(server: SizeServer, *, page: bool) -> list[Table | str]:
    table = figures("model", "bytes of weights", server.priced_in)
    for size in reversed(server.sizes):
        table.add_row(
            f"{server.model}@{size.keep:g}", format_bytes(size.nbytes), f"{size.price:.4g}"
        )
    places = [f"chat and completions at {server.url}/v1, metrics at {server.url}/metrics"]
    if page:
        places.append(f"the page to turn it at {server.url}/")
    return [table, "", *places, "Ctrl-C stops it, once what was begun is answered"]
