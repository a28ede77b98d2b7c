"""A file of a run that says which version of it this is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, read_json


def read_versioned(path: Path, version: int) -> dict[str, Any]:
    """Read a record in JSON that has this version.

    Raises:
        FormatError: If it is damaged, or of another version.
        OSError: If it cannot be read.
    """
    record = read_json(path)
    if record.get("version") != version:
        reason = f"it has version {record.get('version')!r}, this program reads {version}"
        raise FormatError.about(path, reason, "use the plastic-export that wrote it")
    return record
