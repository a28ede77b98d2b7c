"""Arrays in a file, one after the other, in float32."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np
from plastic_core import linalg
from plastic_core.files import FormatError, naming


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
