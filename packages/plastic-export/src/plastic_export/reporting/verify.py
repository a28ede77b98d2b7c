"""The output of ``plastic verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plastic_export.reporting.tables import Presented


def present_defects(out: Path, defects: Sequence[str]) -> Presented:
    """Say that a folder is intact; its defects are for the record and for the error."""
    return Presented({"out": out, "defects": defects}, [] if defects else [f"{out}: intact"])
