"""What matrices become, left in files by the processes that computed it, for one to write."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, array_bytes, naming, read_arrays, write_arrays
from plastic_runtime.distributed import await_file

from plastic_export.folder.places import Place
from plastic_export.folder.shards import Shards

FOLDER = ".shares"
"""Name of their folder, in that of an unfinished output."""
RESULT = "result"


class EncodedShares:
    """A folder with one file for every matrix that is computed and not yet in its place.

    A file appears complete or not at all, with the digests of its tensors. It outlives a run that
    was cut: the next one, of any number of processes, computes what has no file.

    Args:
        folder: That of the unfinished output.

    Examples:
        >>> "model.layers.0.up.weight" in EncodedShares(Path("out"))
        False
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._file(name).exists()

    def put(self, name: str, tensors: Tensors, result: Mapping[str, Any]) -> None:
        """Leave what a matrix becomes, and what is to be recorded of it.

        Raises:
            OSError: If the system refuses.
        """
        self._folder.mkdir(exist_ok=True)
        arrays = {f"{place} {tensor}": data for (place, tensor), data in tensors.arrays.items()}
        digests = {place: _digest(data) for place, data in arrays.items()}
        record = {"name": name, "digests": digests, "result": dict(result)}
        with naming(self._file(name)):
            write_arrays(self._file(name), arrays, {RESULT: json.dumps(record)})

    def move(self, name: str, files: Mapping[Place, Shards]) -> dict[str, Any]:
        """Write what a matrix became to its place, and return what is to be recorded of it.

        Raises:
            FormatError: If a tensor is not what was left.
        """
        await_file(self._file(name))
        arrays, metadata = read_arrays(self._file(name))
        record: dict[str, Any] = json.loads(metadata[RESULT])
        for label, digest in record["digests"].items():
            place, _, tensor = label.partition(" ")
            data = arrays[label]
            if _digest(data) != digest:
                reason = "damaged on its way from another process"
                raise FormatError.about(self._file(name), reason, "remove the file", tensor=tensor)
            files[place].write(tensor, data)
        found: dict[str, Any] = record["result"]
        return found

    def drop(self, name: str) -> None:
        """Remove the file of a matrix that is in its place."""
        self._file(name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder)

    def _file(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"


class Tensors:
    """Takes what is written to files, and keeps it.

    Attributes:
        arrays: The tensors by place and name, in the order in which they came.
    """

    def __init__(self) -> None:
        self.arrays: dict[tuple[Place, str], mx.array | NDArray[Any]] = {}

    def file(self, place: Place) -> _TensorsOfPlace:
        """Return what takes the tensors of one place."""
        return _TensorsOfPlace(place, self.arrays)


class _TensorsOfPlace:
    def __init__(
        self, place: Place, arrays: dict[tuple[Place, str], mx.array | NDArray[Any]]
    ) -> None:
        self._place, self._arrays = place, arrays

    def write(self, name: str, data: mx.array | NDArray[Any]) -> None:
        self._arrays[self._place, name] = data


def _digest(data: mx.array | NDArray[Any]) -> str:
    raw: NDArray[np.uint8] = array_bytes(data)
    return hashlib.sha256(raw.data).hexdigest()
