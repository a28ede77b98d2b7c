"""Arrays in a file, one after the other, in float32; of many batches in one file or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np
from plastic_core import linalg
from plastic_core.files import Closing, FormatError, naming


@contextmanager
def written(file: Path) -> Iterator[BinaryIO]:
    """Yield a stream into a new file, synced to disk at the end of the block."""
    with naming(file), file.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def opened(file: Path) -> BinaryIO:
    """Open a file that `written` made.

    Raises:
        FormatError: If it is not there any more.
    """
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise damaged(file.parent) from None


def damaged(folder: Path) -> FormatError:
    """Say that what a measurement left in a folder is not as it left it."""
    return FormatError.about(folder, "damaged", "delete the folder to calibrate from the beginning")


def write_array(stream: BinaryIO, x: mx.array, what: str) -> None:
    """Write an array in float32, which holds every floating type up to it exactly.

    Raises:
        ValueError: If it is not finite; says ``what`` it is.
    """
    rows = linalg.to_numpy(x.astype(mx.float32)).reshape(-1)
    linalg.check_finite(rows, what)
    stream.write(rows.data)  # NumPy's own way loses what the system said


def read_array(stream: BinaryIO, like: mx.array) -> mx.array:
    """Read the next array, of the shape and type of ``like``.

    Raises:
        FormatError: If the file ends before.
    """
    values = np.fromfile(stream, np.float32, like.size)
    if values.size < like.size:
        raise damaged(Path(stream.name).parent)
    return mx.array(values.reshape(like.shape)).astype(like.dtype)


class SpooledArrays(Closing):
    """The arrays of some batches, from the files in which one process or several left them.

    A file is named after the first batch that its process had: ``input.3`` where that is the first
    of all, else ``input.3.8``. It holds the arrays of the batches that follow up to the next file.
    A context manager.

    Args:
        folder: The folder of the files.
        name: The name of the first one.
        entries: Returns how many entries the array of a batch has; 0 for one that is in no file.

    Raises:
        FormatError: On reading, if an array is not there.
    """

    def __init__(self, folder: Path, name: str, entries: Callable[[int], int]) -> None:
        self._folder, self._entries = folder, entries
        self._files = spool_files(folder, name)
        self._stream: BinaryIO | None = None
        self._next = self._start = 0

    def read(self, batch: int, like: mx.array) -> mx.array:
        """Return the array of a batch, of the shape and type of ``like``; batches come in order."""
        starts = [start for start in self._files if start <= batch]
        if not starts:
            raise damaged(self._folder)
        if self._stream is None or self._start != max(starts):
            self.close()
            self._start = self._next = max(starts)
            self._stream = opened(self._files[self._start])
        passed = sum(self._entries(number) for number in range(self._next, batch))
        self._stream.seek(passed * np.dtype(np.float32).itemsize, os.SEEK_CUR)
        self._next = batch + 1
        return read_array(self._stream, like)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


def spool_name(name: str, first: int) -> str:
    """Return the name of the file that begins with a batch; see `SpooledArrays`."""
    return f"{name}.{first}" if first else name


def spool_files(folder: Path, name: str) -> dict[int, Path]:
    """Return the files of `SpooledArrays` by the number of their first batch."""
    rests = {path: path.name[len(name) :] for path in folder.glob(f"{name}*")}
    return {
        int(rest[1:] or 0): path
        for path, rest in rests.items()
        if not rest or (rest[0] == "." and rest[1:].isdecimal())
    }
