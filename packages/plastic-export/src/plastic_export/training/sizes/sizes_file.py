"""The file that says what the components of a run's adapters are worth, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, sha256_file, write_json

from plastic_export.folder.adapter_files import FILE, FOLDER, PEFT_FILE, PEFT_FOLDER
from plastic_export.training.record_file import read_versioned
from plastic_export.training.sizes.curve import RunSize
from plastic_export.training.sizes.worth import Worth

VERSION = 1
TENSORS = (f"{FOLDER}/{FILE}", f"{PEFT_FOLDER}/{PEFT_FILE}")
"""The files that hold the components, by their place in the folder."""


@dataclass(frozen=True)
class SizesFile:
    """All that a dial on the adapters of a run needs beside them.

    Attributes:
        worth: What every component is worth, in the order in which the files hold them.
        points: What was measured, the largest size first.
        files: SHA-256 of the files of tensors, by their place.
    """

    worth: Worth
    points: tuple[RunSize, ...]
    files: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, worth: Worth, points: tuple[RunSize, ...]) -> SizesFile:
        """Return that of the adapters that lie in a folder."""
        return cls(worth, points, {place: sha256_file(folder / place) for place in TENSORS})

    def write(self, path: Path) -> None:
        """Write it: complete or not at all."""
        record = {
            "version": VERSION,
            "points": [point._asdict() for point in self.points],
            "worth": {layer: list(each) for layer, each in self.worth.items()},
            "files": dict(self.files),
        }
        write_json(path, record)

    def check_fits(self, folder: Path) -> None:
        """Refuse adapters whose components are not those that were priced.

        Raises:
            FormatError: If a file holds other bytes, or is missing.
        """
        for place in TENSORS:
            file = folder / place
            if not file.is_file() or sha256_file(file) != self.files[place]:
                reason = "it is not the file whose components were priced"
                raise FormatError.about(file, reason, "put back what the run wrote")


def read_sizes_file(path: Path) -> SizesFile:
    """Read what `SizesFile.write` wrote.

    Raises:
        FormatError: If it is damaged, or of another version.
        OSError: If it cannot be read.
    """
    record = read_versioned(path, VERSION)
    fields: dict[str, Any] = {name: record.get(name) for name in ("worth", "points", "files")}
    worth, points, files = fields.values()
    if not (_is_worth(worth) and _is_curve(points) and _is_digests(files)):
        reason = "a price, a size or a digest is missing or no number"
        raise FormatError.about(path, reason, "start the training again, which measures them")
    return SizesFile(
        {layer: tuple(each) for layer, each in worth.items()},
        tuple(RunSize(**point) for point in points),
        files,
    )


def _is_worth(worth: Any) -> bool:
    return isinstance(worth, Mapping) and all(
        isinstance(each, list) and all(_is_number(value) and value >= 0 for value in each)
        for each in worth.values()
    )


def _is_curve(points: Any) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, Mapping)
        and point.keys() == {*RunSize._fields}
        and all(_is_number(value) for value in point.values())
        for point in points
    )


def _is_digests(files: Any) -> bool:
    return isinstance(files, Mapping) and {*TENSORS} <= files.keys()


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
