"""The output of a command: a record for machines, lines and plain tables for people."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.table import Table


class Presented(NamedTuple):
    """The result of a command, ready to be printed.

    Attributes:
        record: What ``--json`` prints: everything in it is of a type of JSON, a path or a tuple.
        lines: What people see, in this order.
    """

    record: Any
    lines: list[Table | str]


def figures(*columns: str, text: int = 1) -> Table:
    """Return a plain table; the first ``text`` columns are words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < text else "right", overflow="fold")
    return table
