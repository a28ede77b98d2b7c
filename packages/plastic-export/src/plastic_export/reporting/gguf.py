"""The output of ``plastic gguf``."""

from __future__ import annotations

from collections.abc import Sequence

from plastic_export.reporting.tables import Presented


def present_guide(lines: Sequence[str]) -> Presented:
    """Show the commands as they are."""
    return Presented(lines, list(lines))
