"""Arrays in a file, one after the other, in float32."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np
from plastic_core import linalg
from plastic_core.files import naming


@contextmanager
def written(file: Path) -> Iterator[BinaryIO]:
    """Yield a stream into a new file, synced to disk at the end of the block."""
    with naming(file), file.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


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
        ValueError: If the file ends before.
    """
    values = np.fromfile(stream, np.float32, like.size)
    if values.size < like.size:
        folder = os.fspath(Path(stream.name).parent)
        raise ValueError(f"{folder}: damaged; delete the folder to calibrate from the beginning.")
    return mx.array(values.reshape(like.shape)).astype(like.dtype)
