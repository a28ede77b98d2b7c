"""The calibration texts that come with this package: many kinds, so that none has to be found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent / "shipped" / "texts.jsonl"
"""Rows of texts and chats, every kind spread evenly over the file; the README beside it names the
sources and their licences."""
VERSION = 1
"""Raised with every change of a byte of the texts."""


def shipped_record() -> dict[str, Any]:
    """Return the name and version of the set, for manifests; its digest says the rest."""
    return {"name": "mixed texts of plastic-export", "version": VERSION}
