"""The output of ``plastic push``."""

from __future__ import annotations

from dataclasses import asdict

from plastic_runtime import format_bytes
from rich.table import Table

from plastic_export.hub.push import Pushed
from plastic_export.reporting.tables import Presented, figures


def present_pushed(pushed: Pushed) -> Presented:
    """Show every file with its bytes, and where it is now."""
    table = figures("file", "bytes")
    for name, size in pushed.files.items():
        table.add_row(name, f"{size:,}")
    total = format_bytes(sum(pushed.files.values()))
    count = f"{len(pushed.files)} files, {total}"
    end = (
        f"{count}: nothing was uploaded to {pushed.repository}"
        if pushed.url is None
        else f"{count}: {pushed.url}"
    )
    lines: list[Table | str] = [table, "", end]
    if pushed.left:
        lines.append(f"left here  {', '.join(pushed.left)}")
    return Presented(asdict(pushed), lines)
