"""Safetensors, index and JSON files, checked in full before anything is read from them.

`mlx.core.load` trusts the header of a file: negative or truncated sizes, overlapping
tensors and bytes that no tensor owns all pass. Here every rule of the format is checked,
and tensors are then read from the very descriptor that was checked.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_core.files.arrays import array_from_bytes
from plastic_core.files.closing import Closing
from plastic_core.files.errors import FormatError
from plastic_core.files.foreign import recognise
from plastic_core.files.header import (
    ITEM_BYTES,
    LARGEST_HEADER,
    Header,
    TensorInfo,
    check_header,
)
from plastic_core.files.memory import check_memory
from plastic_core.files.notes import naming
from plastic_core.files.paths import open_regular
from plastic_core.files.strictjson import parse_object

_SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")
_DOWNLOAD = "copy or download the file again"
PAGE_BYTES = 4096
"""What a disk gives at least; what lies between two ranges is read with them if it is less."""
_RUN_BYTES = 2**20


class Fingerprint(NamedTuple):
    """The marks that tell a file from another, or from itself after somebody wrote to it.

    Examples:
        >>> _ = Path("a.txt").write_text("text")
        >>> fingerprint(os.stat("a.txt")).size
        4
    """

    device: int
    inode: int
    size: int
    modified: int


class OpenFile(Closing):
    """A safetensors file whose header was checked, held open. A context manager.

    Attributes:
        path: Path of the file.
        fingerprint: What the file was when its header was checked.
        header: Its checked header.

    Examples:
        >>> from plastic_core.files import export_safetensors
        >>> export_safetensors("a.safetensors", {"w": np.ones((2, 2), np.float32)})
        >>> with open_safetensors("a.safetensors") as file:
        ...     file.read(file.header.tensors["w"]).view("<f4").tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, path: Path, stream: io.FileIO) -> None:
        self.path = path
        self._stream = stream
        self.fingerprint = fingerprint(os.fstat(stream.fileno()))
        self.header = _checked_header(path, stream)

    def read(self, info: TensorInfo) -> NDArray[np.uint8]:
        """Return the bytes of one tensor of this file, exactly as they are stored.

        Args:
            info: An entry of ``header.tensors``.

        Returns:
            A new flat array of ``info.nbytes`` bytes.

        Raises:
            FormatError: If the tensor does not fit into memory, or if the file changed
                since its header was checked.
        """
        return self._range(info, info.start, info.stop)

    def read_rows(self, info: TensorInfo, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of some neighbouring rows of a tensor, and read no others.

        Args:
            info: An entry of ``header.tensors``, with one axis or more.
            start: The first row: a place on the first axis.
            stop: The row after the last one.

        Returns:
            A new flat array.

        Raises:
            FormatError: As `read` does.
        """
        row = info.nbytes // info.shape[0] if info.shape[0] else 0
        return self._range(info, info.start + start * row, info.start + stop * row)

    def read_columns(self, info: TensorInfo, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of some neighbouring columns of a matrix, row by row.

        What lies between them is read where it is shorter than a page, which a disk gives anyway.

        Args:
            info: An entry of ``header.tensors``, with two axes.
            start: The first column.
            stop: The column after the last one.

        Returns:
            A new flat array.

        Raises:
            FormatError: As `read` does.

        Cost:
            One read for a MiB, or for every row; holds that and the result.
        """
        rows, item = info.shape[0], ITEM_BYTES[info.dtype]
        pitch, left, right = info.shape[1] * item, start * item, stop * item
        is_dense = pitch - (right - left) < PAGE_BYTES
        run = max(1, _RUN_BYTES // max(pitch, 1)) if is_dense else 1
        found = np.empty((rows, right - left), np.uint8)
        for first in range(0, rows, run):
            last, begin = min(first + run, rows), info.start + first * pitch
            if is_dense:
                whole = self._range(info, begin, info.start + last * pitch)
                found[first:last] = whole.reshape(-1, pitch)[:, left:right]
            else:
                found[first] = self._range(info, begin + left, begin + right)
        return found.reshape(-1)

    def _range(self, info: TensorInfo, start: int, stop: int) -> NDArray[np.uint8]:
        check_memory(stop - start, info.file, info.name)
        data = np.empty(stop - start, np.uint8)
        _read_into(data.data, start, self.path, self._stream)
        if fingerprint(os.fstat(self._stream.fileno())) != self.fingerprint:
            raise changed(self.path)
        return data

    def array(self, name: str) -> mx.array:
        """Return one tensor of this file, no bit changed; see `read` for the errors."""
        info = self.header.tensors[name]
        return array_from_bytes(self.read(info), info.dtype, info.shape)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def open_safetensors(
    path: str | os.PathLike[str],
    *,
    expected: Fingerprint | None = None,
    home: Path | None = None,
) -> OpenFile:
    """Open a safetensors file and check its header in full.

    Only the header is read, so the cost does not depend on the size of the tensors.

    Args:
        path: Path of the file.
        expected: What the file was when it was opened before.
        home: Folder of the file, where no link may leave it; see `member`.

    Returns:
        The open file, to be closed by the caller (``with`` does).

    Raises:
        FormatError: If it is not a safetensors file, breaks a rule of the format, holds
            what MLX cannot, or is no longer what was expected. The message names the file,
            the tensor and the rule.
        OSError: If it does not exist or cannot be read.

    Examples:
        >>> _ = Path("a.safetensors").write_bytes(b"GGUF" + bytes(99))
        >>> open_safetensors("a.safetensors")
        Traceback (most recent call last):
        plastic_core...FormatError: a.safetensors: a GGUF file, not safetensors; ...
    """
    file = Path(path)
    stream = open_regular(file, home=home)
    try:
        if expected is not None and fingerprint(os.fstat(stream.fileno())) != expected:
            raise changed(file)
        opened = OpenFile(file, stream)
    except BaseException:
        stream.close()
        raise
    return opened


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return the checked header of a safetensors file; see `open_safetensors`.

    Examples:
        >>> from plastic_core.files import export_safetensors
        >>> export_safetensors("a.safetensors", {"w": np.ones((2, 2), np.float32)})
        >>> read_header("a.safetensors").tensors["w"].shape
        (2, 2)
    """
    with open_safetensors(path) as file:
        return file.header


def read_json(
    path: str | os.PathLike[str], *, limit: int = 64 * 2**20, home: Path | None = None
) -> dict[str, Any]:
    """Read a JSON object from a file, refusing what two readers could understand differently.

    Args:
        path: Path of the file.
        limit: Largest size in bytes that is read at all.
        home: Folder of the file, where no link may leave it; see `member`.

    Returns:
        The object.

    Raises:
        FormatError: If it is larger than ``limit``, not UTF-8, not JSON, not an object,
            nested more than 32 deep, or if some object in it names a key twice.
        OSError: If it does not exist or cannot be read.

    Examples:
        >>> _ = Path("a.json").write_text('{"rank": 4}')
        >>> read_json("a.json")
        {'rank': 4}
    """
    file = Path(path)
    with open_regular(file, home=home) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            reason = f"{size} bytes are too many for a JSON file (at most {limit})"
            raise FormatError.about(file, reason, "check where it comes from")
        text = _read(0, size, file, stream)
    return parse_object(text, file, "correct it or download it again")


def read_index(path: str | os.PathLike[str], *, home: Path | None = None) -> dict[str, str]:
    """Read the index of a sharded checkpoint.

    Args:
        path: Path of the file, usually ``model.safetensors.index.json``.
        home: Folder of the file, where no link may leave it; see `member`.

    Returns:
        The shard of each tensor. Every shard is the plain name of a ``.safetensors`` file:
        no folder, no drive, no leading dot.

    Raises:
        FormatError: If the file is not such an index.
        OSError: If it does not exist or cannot be read.

    Examples:
        >>> _ = Path("i.json").write_text('{"weight_map": {"w": "model-1.safetensors"}}')
        >>> read_index("i.json")
        {'w': 'model-1.safetensors'}
    """
    file = Path(path)
    weight_map = read_json(file, home=home).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError.about(file, "'weight_map' is missing or empty", _DOWNLOAD)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            reason = f"its shard {shard!r:.120} is not the plain name of a .safetensors file"
            raise FormatError.about(file, reason, "do not use this checkpoint", tensor=tensor)
    return weight_map


def fingerprint(status: os.stat_result) -> Fingerprint:
    """Return the fingerprint of a file from what ``os.stat`` says about it.

    Examples:
        >>> _ = Path("a.txt").write_text("text")
        >>> fingerprint(os.stat("a.txt")) == fingerprint(os.stat("a.txt"))
        True
    """
    return Fingerprint(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _checked_header(file: Path, stream: io.FileIO) -> Header:
    size = os.fstat(stream.fileno()).st_size
    start = _read(0, min(size, 512), file, stream)
    length = int.from_bytes(start[:8], "little")
    if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER):
        raise _not_safetensors(file, start, size, length)
    return check_header(_read(8, length, file, stream), size, file)


def _not_safetensors(file: Path, start: bytes, size: int, length: int) -> FormatError:
    """Say why a file cannot be safetensors, by its content where that is known."""
    if (foreign := recognise(start)) is not None:
        return FormatError.about(file, f"{foreign.what}, not safetensors", foreign.remedy)
    if size < 8:
        reason = f"{size} bytes are too few for a safetensors file"
    elif length > LARGEST_HEADER:
        reason = f"not safetensors: its header would take {length} bytes"
    elif length < 2:
        reason = f"a header of {length} bytes holds nothing"
    else:
        reason = f"its header takes {length} bytes and only {size - 8} follow"
    return FormatError.about(file, reason, _DOWNLOAD)


def _read(start: int, count: int, file: Path, stream: io.FileIO) -> bytes:
    data = bytearray(count)
    _read_into(memoryview(data), start, file, stream)
    return bytes(data)


def _read_into(target: memoryview, start: int, file: Path, stream: io.FileIO) -> None:
    with naming(file):
        while target:
            if not (count := os.preadv(stream.fileno(), [target], start)):
                raise changed(file)
            target, start = target[count:], start + count


def changed(file: Path) -> FormatError:
    """Build the error for a file that somebody wrote to while it was in use.

    Examples:
        >>> print(changed(Path("a.json")))
        a.json: it changed while it was being read; start again
    """
    return FormatError.about(file, "it changed while it was being read", "start again")
