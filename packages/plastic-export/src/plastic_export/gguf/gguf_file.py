"""A GGUF file, written tensor by tensor: whole or not at all."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import AtomicFile, FormatError

from plastic_export.gguf.package import gguf_package


@dataclass(frozen=True)
class GGUFTensor:
    """The place of a tensor in a GGUF file.

    Attributes:
        name: Its name there, such as ``"blk.0.attn_q.weight"``.
        shape: Its shape, rows first.
        type: Its type, such as ``"Q8_0"``.
    """

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        package = gguf_package()
        sizes: dict[Any, tuple[int, int]] = package.GGML_QUANT_SIZES
        entries, nbytes = sizes[package.GGMLQuantizationType[self.type]]
        return math.prod(self.shape) // entries * nbytes


def check_dest(dest: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        FormatError: If there is something.
    """
    if dest.is_symlink() or dest.exists():
        kind = "the folder" if dest.is_dir() else "the file"
        raise FormatError.about(dest, f"{kind} is there already", "choose another name")


class GGUFFile:
    """Streams tensors into a new GGUF file. A context manager.

    Args:
        dest: The file; must not exist.
        writer: A writer of ``gguf`` that holds the metadata, and nothing else.
        tensors: Every tensor to come, in order.

    Raises:
        FormatError: If there is a file already.
        OSError: If the system refuses. Nothing is left behind.
    """

    def __init__(self, dest: Path, writer: Any, tensors: Sequence[GGUFTensor]) -> None:
        check_dest(dest)
        self._head = _head(writer, tensors)
        self._alignment: int = writer.data_alignment
        dest.parent.mkdir(parents=True, exist_ok=True)
        self._file = AtomicFile(dest)

    def __enter__(self) -> GGUFFile:
        self._write(self._head)
        return self

    def write(self, data: NDArray[Any]) -> None:
        """Append the bytes of the next tensor."""
        self._write(np.ascontiguousarray(data).view(np.uint8).data)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._file.leave(error)

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._file.write(bytes(-self._file.size % self._alignment))


def new_writer(architecture: str) -> Any:
    """Return a writer of ``gguf`` that collects metadata and opens no file."""
    return gguf_package().GGUFWriter(None, architecture)


def _head(writer: Any, tensors: Sequence[GGUFTensor]) -> bytes:
    """Return all that stands before the first tensor."""
    package, head = gguf_package(), io.BytesIO()
    for tensor in tensors:
        kind = package.GGMLQuantizationType[tensor.type]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind
        )
    writer.fout, writer.state = [head], package.gguf_writer.WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return head.getvalue()
