"""The output of ``plastic gguf``."""

from __future__ import annotations

from collections.abc import Sequence

from plastic_export.reporting.tables import Presented


def present_guide(lines: Sequence[str]) -> Presented:
    """Show the lines as they are; as JSON also the commands among them."""
    commands = [line for line in lines if not line.startswith("#")]
    return Presented({"lines": list(lines), "commands": commands}, list(lines))
