"""Safetensors files written tensor by tensor, complete or not there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from plastic_core.files.arrays import Array, array_bytes, dtype_name
from plastic_core.files.atomic import AtomicFile
from plastic_core.files.closing import Closing
from plastic_core.files.header import ITEM_BYTES, LARGEST_HEADER, check_name


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written.

    Attributes:
        name: Its name.
        dtype: Its dtype as safetensors writes it, such as ``"BF16"``.
        shape: Its shape.

    Examples:
        >>> TensorSpec("w", "BF16", (4, 8)).nbytes
        64
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class SafetensorsWriter(Closing):
    """A safetensors file written one tensor at a time. A context manager.

    The header is written first, so nothing but the tensor at hand has to be in memory.
    Leaving the ``with`` block completes the file; leaving it by an exception removes it,
    and a file that had the name before stays as it was.

    Args:
        path: Name of the file; see `AtomicFile`.
        specs: Every tensor, in the order in which they will be written.
        metadata: Strings to store beside them.
        keep: Leave what was written behind after an exception; what an earlier process left, with
            the same specs, can then be passed over with `skip`.

    Raises:
        ValueError: If a name is given twice or not allowed, or a dtype unknown.
        TypeError: If the metadata are not strings.
        BusyError: If another process is writing the file.
        OSError: If the file cannot be created.

    Examples:
        >>> with SafetensorsWriter("a.safetensors", [TensorSpec("w", "F32", (2,))]) as writer:
        ...     writer.write("w", np.ones(2, np.float32))
        >>> os.path.getsize("a.safetensors")
        72
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        specs: Iterable[TensorSpec],
        metadata: Mapping[str, str] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self._specs = list(specs)
        self._written = 0
        header = encode_header(self._specs, metadata or {})
        self._stop = len(header)  # of what counts; what an earlier process left may go on
        self._file = AtomicFile(path, keep=keep)
        try:
            if self._file.read(0, len(header)) != header:
                self._file.rewind(0)
                self._file.write(header)
        except BaseException:
            self._file.abandon()
            raise

    def skip(self, name: str) -> None:
        """Pass over the next tensor, which an earlier process has written.

        Raises:
            ValueError: If it is not the next tensor, or the file ends before it does.
        """
        spec = self._next(name)
        if self._stop + spec.nbytes > self._file.size:
            raise ValueError(f"the tensor {name!r} is not in what an earlier process left.")
        self._advance(spec)

    def write(self, name: str, data: Array | bytes) -> None:
        """Write the next tensor.

        Args:
            name: Its name, which must be the next one of the specs.
            data: The array, of the dtype and shape of its spec; or its bytes, as ``bytes``
                or as a flat NumPy array of uint8 (what ``Checkpoint.raw`` returns).

        Raises:
            ValueError: If it is not the next tensor, or not what its spec announced.
            OSError: If the system refuses, a full disk for example.
        """
        spec = self._next(name)
        payload = _payload(spec, data)
        if self._file.size > self._stop:
            self._file.rewind(self._stop)
        self._file.write(payload)
        self._advance(spec)

    def close(self) -> None:
        """Force the file to the disk and give it its name. A second call does nothing.

        Raises:
            ValueError: If a tensor of the specs was not written. Nothing is left behind.
            OSError: If the system refuses. Nothing is left behind.
        """
        if self._file.closed:
            return
        with self._file:
            if self._file.size > self._stop:
                self._file.rewind(self._stop)
            if self._written < len(self._specs):
                missing = self._specs[self._written].name
                raise ValueError(f"the tensor {missing!r} of the specs was not written.")

    def abandon(self) -> None:
        """Remove the file, unless it is to be kept. After `close` this does nothing."""
        self._file.abandon()

    def _next(self, name: str) -> TensorSpec:
        following = self._specs[self._written :][:1]
        if not following or following[0].name != name:
            turn = repr(following[0].name) if following else "none: all are written"
            raise ValueError(f"`name` must be the next tensor of the specs ({turn}), got {name!r}.")
        return following[0]

    def _advance(self, spec: TensorSpec) -> None:
        self._stop += spec.nbytes
        self._written += 1

    def leave(self, error: BaseException | None) -> None:
        """Complete the file, or abandon it after an error."""
        if error is None:
            self.close()
        else:
            self.abandon()


def encode_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Return the beginning of a safetensors file: its length and header, padded to 8 bytes.

    Args:
        specs: Every tensor, in the order of their bytes.
        metadata: Strings to store beside them.

    Returns:
        The bytes. The tensors follow without a gap.

    Raises:
        ValueError: If a name is given twice or not allowed, a dtype unknown, or the header
            too large for the format.
        TypeError: If the metadata are not strings.

    Examples:
        >>> header = encode_header([TensorSpec("w", "F32", (2,))], {})
        >>> len(header) % 8, header[8:].decode().rstrip()
        (0, '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')
    """
    entries: dict[str, object] = {"__metadata__": _strings(metadata)} if metadata else {}
    start = 0
    for spec in specs:
        _check_spec(spec, entries)
        stop = start + spec.nbytes
        entry = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, stop]}
        entries[spec.name] = entry
        start = stop
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER:
        raise ValueError(
            f"`specs` must fit into a header of {LARGEST_HEADER} bytes, got {len(text)}."
            " Split them over several files."
        )
    return len(text).to_bytes(8, "little") + text


def tensor_spans(
    specs: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    """Return the first byte of each tensor in the file, and the one after its last.

    Examples:
        >>> tensor_spans([TensorSpec("a", "F32", (2,)), TensorSpec("b", "U8", (3,))], {})
        {'a': (120, 128), 'b': (128, 131)}
    """
    start = len(encode_header(specs, metadata))
    spans = {}
    for spec in specs:
        spans[spec.name] = start, start + spec.nbytes
        start += spec.nbytes
    return spans


def _check_spec(spec: TensorSpec, entries: Mapping[str, object]) -> None:
    reason = "the name is reserved" if spec.name == "__metadata__" else check_name(spec.name)
    if reason is not None:
        raise ValueError(f"a tensor cannot be called {spec.name!r}: {reason}.")
    if spec.name in entries:
        raise ValueError(f"`specs` must name each tensor once, got {spec.name!r} twice.")
    if spec.dtype not in ITEM_BYTES:
        known = ", ".join(ITEM_BYTES)
        raise ValueError(
            f"the dtype of {spec.name!r} must be one of {known}, got {spec.dtype!r}. Cast it first."
        )


def _strings(metadata: Mapping[str, str]) -> dict[str, str]:
    for pair in metadata.items():
        if not all(isinstance(text, str) for text in pair):
            raise TypeError(f"`metadata` must map strings to strings, got {pair}.")
    return dict(metadata)


def _payload(spec: TensorSpec, data: Array | bytes) -> memoryview:
    """Return the bytes to write, once they are what the spec announced."""
    if isinstance(data, bytes):
        payload = memoryview(data)
    else:
        is_raw = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 1
        announced, given = (spec.dtype, spec.shape), (dtype_name(data), tuple(data.shape))
        if not is_raw and given != announced:
            raise ValueError(f"`data` of {spec.name!r} must be {announced}, got {given}.")
        payload = array_bytes(data).data
    if payload.nbytes != spec.nbytes:
        size = payload.nbytes
        raise ValueError(f"`data` of {spec.name!r} must take {spec.nbytes} bytes, got {size}.")
    return payload
