"""One record of a sleep store: a safetensors file, written once, of what was parked or released.

Its name is ``<sequence>-<digest>.safetensors``: eight decimal digits, and the first sixteen
hexadecimal ones of the SHA-256 of all bytes before the tensors. Those hold the SHA-256 of every
tensor, so no bit of a record can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import (
    FormatError,
    SafetensorsWriter,
    TensorInfo,
    TensorSpec,
    check_memory,
    encode_header,
    open_regular,
    open_safetensors,
)

KEY = "plastic_sleep"
VERSION = 1
TEMPORARY = re.compile(r"\.\d{8}-[0-9a-f]{16}\.safetensors\.tmp")

_NAME = re.compile(r"(\d{8})-([0-9a-f]{16})\.safetensors")
_REMEDY = "put back a copy of this file"

Bytes = NDArray[np.uint8]


class Piece(NamedTuple):
    """One tensor of a component about to be written.

    Attributes:
        spec: Its name within the component, dtype and shape.
        sha256: Digest of its bytes.
        read: Returns them.
    """

    spec: TensorSpec
    sha256: str
    read: Callable[[], Bytes]


class Draft(NamedTuple):
    """A component about to be written.

    Attributes:
        id: Its number.
        path: Path of its layer.
        coding: How its factors are rounded, in JSON's types; None where they are not.
        pieces: Its tensors.
    """

    id: int
    path: str
    coding: dict[str, Any] | None
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(piece.spec.nbytes for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Entry:
    """A component on disk; nothing but its header is in memory.

    Attributes:
        id: Its number.
        path: Path of its layer.
        coding: The rounding of its factors, see `Draft`.
        tensors: Where each of its tensors lies, by the name within the component.
        digests: SHA-256 of each.
    """

    id: int
    path: str
    coding: dict[str, Any] | None
    tensors: Mapping[str, TensorInfo]
    digests: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of U, S and Vh awake."""
        awake = (self.coding or {}).get("awake", {})
        return sum(awake[n] if n in awake else self.tensors[n].nbytes for n in ("U", "S", "Vh"))

    def read(self, name: str) -> Bytes:
        """Return the bytes of one tensor.

        Raises:
            FormatError: If they are not those that were written; names tensor and component.
            OSError: If the file cannot be read.
        """
        info = self.tensors[name]
        check_memory(info.nbytes, info.file, self.label(name))
        data = np.empty(info.nbytes, np.uint8)
        with open_regular(info.file) as stream:
            stream.seek(info.start)
            filled = 0
            while filled < data.size and (count := stream.readinto(data.data[filled:])):
                filled += count
        if filled < data.size or _sha256(data) != self.digests[name]:
            reason = f"component {self.id}: its bytes are not those that were parked"
            raise FormatError.about(info.file, reason, _REMEDY, tensor=self.label(name))
        return data

    def label(self, name: str) -> str:
        """Return the tensor as messages call it: layer, then factor."""
        return f"{self.path}.{name}" if self.path else name

    def draft(self) -> Draft:
        """Return the component as it is, to be written again."""
        pieces = (
            Piece(TensorSpec(name, i.dtype, i.shape), self.digests[name], self._reader(name))
            for name, i in self.tensors.items()
        )
        return Draft(self.id, self.path, self.coding, tuple(pieces))

    def _reader(self, name: str) -> Callable[[], Bytes]:
        return lambda: self.read(name)


@dataclass(frozen=True, slots=True)
class Record:
    """The content of one file.

    Attributes:
        file: The file.
        sequence: Its place among the records.
        base: The first record that counts; those before it have been rewritten.
        next_id: The least number that no component had when it was written.
        parked: The components in it, by number.
        released: Numbers of components that are asleep no longer.
    """

    file: Path
    sequence: int
    base: int
    next_id: int
    parked: dict[int, Entry]
    released: tuple[int, ...]


def write_record(
    folder: Path,
    sequence: int,
    base: int,
    next_id: int,
    parked: Sequence[Draft] = (),
    released: Iterable[int] = (),
) -> Record:
    """Write one record and return it once it is on the disk under its name.

    Raises:
        OSError: If the system refuses. The file may be there nevertheless, complete, if it was the
            last sync that failed.
    """
    components = {
        str(d.id): {
            "path": d.path,
            "sha256": {p.spec.name: p.sha256 for p in d.pieces},
            **({} if d.coding is None else {"coding": d.coding}),
        }
        for d in parked
    }
    content = {
        "version": VERSION,
        "sequence": sequence,
        "base": base,
        "next_id": next_id,
        "parked": components,
        "released": sorted(released),
    }
    metadata = {KEY: json.dumps(content, sort_keys=True)}
    pieces = [(f"{d.id}.{p.spec.name}", p) for d in parked for p in d.pieces]
    specs = [TensorSpec(name, p.spec.dtype, p.spec.shape) for name, p in pieces]
    digest = hashlib.sha256(encode_header(specs, metadata)).hexdigest()[:16]
    file = folder / f"{sequence:08d}-{digest}.safetensors"
    with SafetensorsWriter(file, specs, metadata) as writer:
        for name, piece in pieces:
            writer.write(name, piece.read())
    return read_record(file)


def record_files(folder: Path) -> list[Path]:
    """Return the records of a folder, oldest first."""
    return [folder / name for name in sorted(os.listdir(folder)) if _NAME.fullmatch(name)]


def sequence_of(file: Path) -> int:
    """Return the place of a record among the others, by its name."""
    return int(file.name[:8])


def read_record(file: Path) -> Record:
    """Read the header of a record, every bit of it checked.

    Raises:
        FormatError: If it is damaged, or of another version.
        OSError: If it cannot be read.
    """
    _check_head(file)
    with open_safetensors(file) as opened:
        header = opened.header
    try:
        content = json.loads(header.metadata[KEY])
        if content["version"] != VERSION:
            reason = f"version {content['version']!r} of the format, this is {VERSION}"
            raise FormatError.about(file, reason, "use the plastic-runtime that wrote it")
        tensors: dict[int, dict[str, TensorInfo]] = {}
        for name, info in header.tensors.items():
            id, _, part = name.partition(".")
            tensors.setdefault(int(id), {})[part] = info
        parked = {
            int(id): Entry(int(id), c["path"], c.get("coding"), tensors[int(id)], c["sha256"])
            for id, c in content["parked"].items()
        }
        return Record(
            file,
            sequence=int(content["sequence"]),
            base=int(content["base"]),
            next_id=int(content["next_id"]),
            parked=dict(sorted(parked.items())),
            released=tuple(content["released"]),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise FormatError.about(file, f"not a record of sleep ({error!r})", "remove it") from error


def piece(name: str, dtype: str, shape: tuple[int, ...], data: Bytes) -> Piece:
    """Return a tensor whose bytes are in memory."""
    return Piece(TensorSpec(name, dtype, shape), _sha256(data), lambda: data)


def _check_head(file: Path) -> None:
    """Compare all bytes before the tensors with the digest in the name."""
    with open_regular(file) as stream:
        start = stream.read(8) or b""
        length = int.from_bytes(start, "little")
        size = os.fstat(stream.fileno()).st_size
        head = start + (stream.read(length) or b"") if length <= size else start
    match = _NAME.fullmatch(file.name)
    if match is None or hashlib.sha256(head).hexdigest()[:16] != match.group(2):
        reason = "its header is not the one that was written, by the digest in its name"
        raise FormatError.about(file, reason, _REMEDY)


def _sha256(data: Bytes) -> str:
    return hashlib.sha256(data.data).hexdigest()
