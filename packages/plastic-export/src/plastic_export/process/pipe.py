"""Python values through a pipe: whole, undamaged, or not at all; arrays from memory to memory."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

_COUNT = struct.Struct("<Q")
_LENGTH_AND_CHECKSUM = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, mx.array) and obj.dtype == mx.float64:
            raise TypeError("an MLX array of float64 would arrive as float32; pass a NumPy array")
        return NotImplemented


def pack(value: object) -> list[memoryview]:
    """Return the pickle of ``value``, then the memory of its contiguous arrays, not copied.

    Args:
        value: Anything picklable. Only trusted values should ever be unpacked again.

    Returns:
        At least one part, each of format ``B`` and one axis.

    Raises:
        TypeError: If ``value`` holds an MLX array of float64, which pickles as float32.
    """
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    return [memoryview(stream.getvalue()), *(buffer.raw() for buffer in buffers)]


def unpack(parts: Sequence[memoryview]) -> Any:
    """Return the value that `pack` was given; its arrays share the memory of ``parts``."""
    return pickle.loads(parts[0], buffers=parts[1:])


def send(stream: io.FileIO, parts: Sequence[memoryview]) -> None:
    """Write one record: the number of parts, then the parts, each after its length and checksum.

    Args:
        stream: Unbuffered and blocking.
        parts: Views of format ``B`` with one axis.
    """
    for part in [memoryview(_COUNT.pack(len(parts))), *parts]:
        prefix = _LENGTH_AND_CHECKSUM.pack(part.nbytes, zlib.crc32(part))
        _write(stream, memoryview(prefix + _CHECKSUM.pack(zlib.crc32(prefix))))
        _write(stream, part)


def receive(stream: io.FileIO) -> list[memoryview]:
    """Read one record, each part into memory of its own.

    Args:
        stream: Unbuffered and blocking.

    Raises:
        EOFError: If the record is cut short, or a checksum (CRC-32) does not hold. A length is
            checked before any memory is allocated for it.
    """
    (count,) = _COUNT.unpack(_part(stream))
    return [_part(stream) for _ in range(count)]


def _part(stream: io.FileIO) -> memoryview:
    prefix = _read(stream, _LENGTH_AND_CHECKSUM.size)
    _check(prefix, *_CHECKSUM.unpack(_read(stream, _CHECKSUM.size)))
    length, checksum = _LENGTH_AND_CHECKSUM.unpack(prefix)
    part = _read(stream, length)
    _check(part, checksum)
    return part


def _check(data: memoryview, checksum: int) -> None:
    if zlib.crc32(data) != checksum:
        raise EOFError("The record is damaged.")


def _read(stream: io.FileIO, size: int) -> memoryview:
    data, filled = np.empty(size, np.uint8).data, 0
    while filled < size:
        count = stream.readinto(data[filled:])
        if not count:
            raise EOFError(f"The record ends {size - filled} bytes early.")
        filled += count
    return data


def _write(stream: io.FileIO, data: memoryview) -> None:
    while data:
        data = data[stream.write(data) :]
