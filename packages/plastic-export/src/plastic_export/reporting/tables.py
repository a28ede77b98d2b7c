"""The output of a command: a record for machines, lines and plain tables for people."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


class Presented(NamedTuple):
    """The result of a command, ready to be printed.

    Attributes:
        record: What ``--json`` prints, one object whose names are in snake_case: everything in it
            is of a type of JSON, a path or a tuple.
        lines: What people see, in this order.
    """

    record: dict[str, Any]
    lines: list[Table | str]


def figures(*columns: str, text: int = 1) -> Table:
    """Return a plain table; the first ``text`` columns are words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < text else "right", overflow="fold")
    return table


class Name:
    """A name in a table, broken behind a dot, a slash or a dash where its column is too narrow.

    Args:
        name: The name of a tensor, a module or a file.

    Examples:
        >>> from rich.console import Console
        >>> Console(width=16).print(Name("model.layers.0.mlp.up_proj"))
        model.layers.0.
        mlp.up_proj
    """

    def __init__(self, name: str) -> None:
        self.parts = re.findall(r"[^./-]*[./-]|[^./-]+", name)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Tell rich how narrow and how wide it may be."""
        return Measurement(max(map(len, self.parts), default=0), len("".join(self.parts)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Write as many parts in a line as there is room for."""
        lines = [""]
        for part in self.parts:
            if lines[-1] and len(lines[-1]) + len(part) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(lines), overflow="fold")
