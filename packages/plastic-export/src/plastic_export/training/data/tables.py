"""The rows of a file by their number: lines of JSONL, or rows of a table of ``datasets``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError

from plastic_export.calibration.rows import Row, read_rows
from plastic_export.model.library import brief

HOW = (
    "rows in parquet or arrow need the package datasets; install the extra: "
    "pip install 'plastic-export[data]'"
)


@dataclass(frozen=True)
class RowTable:
    """The rows of one file.

    Attributes:
        file: Where they are; a folder if ``datasets`` saved it.
        unit: What is counted: ``"line"`` or ``"row"``.
        rows: The rows by their number, from 1.
    """

    file: Path
    unit: str
    rows: Mapping[int, Row]


def read_table(file: Path) -> RowTable:
    """Read the rows of a file of ``files.SUFFIXES``, or of a folder that ``datasets`` saved.

    Fields of a table that are empty within a list, as one row of a table has the fields of all,
    are left out: a chat template would take them for given.

    Raises:
        FormatError: If it is damaged; names the line of a JSONL file.
        ModuleNotFoundError: If it is a table and ``datasets`` is not installed.
        OSError: If it cannot be read.
    """
    if file.suffix == ".jsonl" or not file.exists():
        return RowTable(file, "line", read_rows(file))
    rows = enumerate(_dataset(file), start=1)
    return RowTable(file, "row", {number: _without_nulls(row) for number, row in rows})


def _dataset(file: Path) -> Any:
    """Return the ``Dataset`` of a place; nothing is copied to a cache."""
    try:
        import datasets
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table as read_parquet
    except ModuleNotFoundError as error:
        if error.name not in ("datasets", "pyarrow"):
            raise
        raise ModuleNotFoundError(HOW, name=error.name) from None
    try:
        if file.is_dir():
            return datasets.load_from_disk(str(file))
        if file.suffix == ".parquet":
            return datasets.Dataset(read_parquet(file))
        return datasets.Dataset.from_file(str(file))
    except (ArrowException, KeyError, TypeError, ValueError) as error:
        raise FormatError.about(file, brief(error), "write or download it again") from error


def _without_nulls(row: Mapping[str, Any]) -> Row:
    return {name: _pruned(value) for name, value in row.items()}


def _pruned(value: Any) -> Any:
    """Return a value without what is null in the objects within it, but for ``content``."""
    if isinstance(value, list):
        return [_pruned(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _pruned(one) for name, one in value.items() if one is not None or name == "content"
    }
