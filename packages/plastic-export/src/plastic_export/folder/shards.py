"""Stream the tensors of a model into one safetensors file, or several with an index."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import (
    MLX_DTYPES,
    Leaving,
    SafetensorsWriter,
    TensorSpec,
    array_bytes,
    encode_header,
    sha256_file,
    temporary_name,
    tensor_spans,
    write_json,
)

WIDER_TYPE = (
    "leave it out with --exclude, or take a copy in bfloat16 (`mlx_lm.convert --dtype bfloat16`)"
)
"""What to do about a matrix whose numbers are too large for its type."""
SHARD_BYTES = 5_000_000_000  # what mlx-lm writes


class Shards(Leaving):
    """Streams tensors into ``model.safetensors`` or ``model-0000i-of-0000n.safetensors``.

    Use as a context manager. At most one tensor is held at a time.

    Args:
        folder: An existing folder.
        specs: Every tensor to come, in the order in which ``write`` will be called.
        metadata: Text to text, for the header of every file.
        stem: File name without number and suffix.
        limit: Bytes of tensors per file; a file holds at least one tensor.
        keep: Leave what was written behind after an exception, for `holds` and `skip`.

    Attributes:
        digests: SHA-256 of the bytes of every tensor written so far, by name.
    """

    def __init__(
        self,
        folder: Path,
        specs: Sequence[TensorSpec],
        metadata: Mapping[str, str],
        *,
        stem: str = "model",
        limit: int = SHARD_BYTES,
        keep: bool = False,
    ) -> None:
        self.folder = folder
        self.metadata = dict(metadata)
        self.digests: dict[str, str] = {}
        groups = split_specs(specs, limit)
        count = len(groups)
        names = [f"{stem}-{i:05d}-of-{count:05d}" for i in range(1, count + 1)]
        self.files = [f"{n}.safetensors" for n in (names if count > 1 else [stem])]
        self._stem = stem
        self._keep = keep
        self._groups = groups
        self._owner = {spec.name: i for i, group in enumerate(groups) for spec in group}
        self._open: tuple[int, SafetensorsWriter] | None = None
        self._spans: dict[int, dict[str, tuple[int, int]]] = {}

    def write(self, name: str, data: mx.array | NDArray[Any]) -> None:
        """Append the next tensor: an array of the declared type and shape, or its raw bytes."""
        raw = array_bytes(data)
        self.digests[name] = hashlib.sha256(raw.data).hexdigest()
        self._writer(self._owner[name]).write(name, raw)

    def holds(self, digests: Mapping[str, str]) -> bool:
        """Tell whether an earlier process wrote these tensors to the folder, with these digests."""
        return all(self._stored_digest(name) == digest for name, digest in digests.items())

    def skip(self, digests: Mapping[str, str]) -> None:
        """Pass over the next tensors, which `holds` has found."""
        for name, digest in digests.items():
            self._writer(self._owner[name]).skip(name)
            self.digests[name] = digest

    def _stored_digest(self, name: str) -> str | None:
        """The digest of what stands where a tensor belongs; None if there is no such tensor."""
        if name not in self._owner:
            return None
        index = self._owner[name]
        path = self.folder / self.files[index]
        there = path if path.exists() else temporary_name(path)
        if index not in self._spans:
            self._spans[index] = tensor_spans(self._groups[index], self.metadata)
        start, stop = self._spans[index][name]
        return sha256_file(there, start, stop) if there.exists() else None

    def _writer(self, index: int) -> SafetensorsWriter:
        if self._open is None or self._open[0] != index:
            if self._open is not None:
                self._open[1].close()
            path = self.folder / self.files[index]
            self._open = (
                index,
                SafetensorsWriter(path, self._groups[index], self.metadata, keep=self._keep),
            )
        return self._open[1]

    def _write_index(self) -> None:
        total = sum(s.nbytes for group in self._groups for s in group)
        weight_map = {name: self.files[i] for name, i in sorted(self._owner.items())}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(self.folder / f"{self._stem}.safetensors.index.json", index)

    def leave(self, error: BaseException | None) -> None:
        """Complete the files and their index, or leave what was written as ``keep`` says."""
        if self._open is not None:
            self._open[1].leave(error)
        if error is None and len(self.files) > 1:
            self._write_index()


def split_specs(specs: Sequence[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    """Cut the list into runs of at most ``limit`` bytes, one tensor at least in each."""
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + spec.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.nbytes
    return groups


def shard_bytes(
    specs: Sequence[TensorSpec], metadata: Mapping[str, str], *, limit: int = SHARD_BYTES
) -> int:
    """Return the bytes of the files that `Shards` makes of these tensors, headers counted.

    Examples:
        >>> shard_bytes([TensorSpec("w", "F32", (2,))], {})
        72
    """
    return sum(
        len(encode_header(group, metadata)) + sum(spec.nbytes for spec in group)
        for group in split_specs(specs, limit)
    )


def bytes_of_files(folder: Path, pattern: str) -> int:
    """Return the bytes of the files of a folder that a glob pattern names."""
    return sum(path.stat().st_size for path in folder.glob(pattern))


def as_stored(array: NDArray[np.float32], dtype: str) -> mx.array:
    """Cast float32 to a storage type, and refuse what does not fit its range.

    Args:
        array: Finite float32.
        dtype: ``"BF16"``, ``"F16"`` or ``"F32"``.

    Raises:
        ValueError: If a value overflows, which happens in float16 above 65504.

    Examples:
        >>> as_stored(np.array([1.0, 2.5], np.float32), "BF16").dtype
        mlx.core.bfloat16
    """
    stored = mx.array(array).astype(MLX_DTYPES[dtype])
    if not mx.isfinite(stored).all().item():
        largest = float(np.abs(array).max())
        raise ValueError(f"a value of {largest:.3g} does not fit {dtype}; {WIDER_TYPE}")
    return stored


def as_float32(stored: mx.array) -> NDArray[np.float32]:
    """Return the exact float32 value of a stored array.

    Examples:
        >>> as_float32(mx.array([1.0, 2.5], mx.bfloat16))
        array([1. , 2.5], dtype=float32)
    """
    values = stored.astype(mx.float32)
    mx.eval(values)  # NumPy would hide that it failed
    return np.asarray(values)
