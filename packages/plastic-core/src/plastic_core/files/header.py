"""The header of a safetensors file, every rule checked.

Source: https://github.com/huggingface/safetensors, README, section "Format", and the
reference implementation ``safetensors/src/tensor.rs``. Stricter than the reference in this:
a name is given once, is not empty and holds no control character; a dimension is below
2^31, a shape has at most 32 of them and names no more elements than 63 bits count; the
dtype is one that MLX can hold.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_core.files.errors import FormatError
from plastic_core.files.strictjson import parse_object

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F16": 2, "BF16": 2, "F32": 4, "C64": 8, "F8_E4M3": 1, "F8_E8M0": 1,
}  # fmt: skip
"""Bytes per element of the safetensors dtypes that MLX can hold, F8 as bytes that are codes."""

_FLOAT8_AND_LESS = frozenset({"F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2"})
LARGEST_HEADER = 99_999_999
"""Bytes of JSON that both the reference implementation and MLX read."""

_LARGEST_DIMENSION = 2**31 - 1  # MLX counts each dimension in 32 bits
_LARGEST_RANK = 32
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_REWRITE = "write the file again with the safetensors library"
_DOWNLOAD = "copy or download the file again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The name, type, shape and place of one tensor of a file.

    Attributes:
        name: Its name.
        dtype: Its dtype as safetensors writes it, such as ``"BF16"``.
        shape: Its shape.
        start: First byte in the file.
        stop: Byte after the last one in the file.
        file: The file.

    Examples:
        >>> import numpy as np
        >>> from plastic_core.files import export_safetensors, read_header
        >>> export_safetensors("a.safetensors", {"w": np.ones((2, 2), np.float32)})
        >>> info = read_header("a.safetensors").tensors["w"]
        >>> info.dtype, info.shape, info.nbytes
        ('F32', (2, 2), 16)
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    file: Path

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors and the metadata that a safetensors file says it holds.

    Attributes:
        tensors: Every tensor by name, in the order of the header.
        metadata: The strings stored beside them.

    Examples:
        >>> import numpy as np
        >>> from plastic_core.files import export_safetensors, read_header
        >>> export_safetensors("a.safetensors", {"w": np.ones((2, 2), np.float32)})
        >>> header = read_header("a.safetensors")
        >>> list(header.tensors), header.metadata
        (['w'], {})
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def check_header(text: bytes, size: int, file: Path) -> Header:
    """Parse the JSON header of a safetensors file and check every rule of the format.

    Args:
        text: The header, without the eight bytes of its length.
        size: Size of the whole file in bytes.
        file: The file, for the result and the messages.

    Returns:
        The header. Its tensors cover the file from the header to the end, without gap or
        overlap.

    Raises:
        FormatError: If a rule is broken; the message names the file, the tensor and the rule.
    """
    entries = parse_object(text, file, _REWRITE, header=True)
    metadata = _check_metadata(entries.pop("__metadata__", None), file)
    data = 8 + len(text)
    tensors = {name: _check_entry(name, entry, data, file) for name, entry in entries.items()}
    _check_layout(list(tensors.values()), data, size, file)
    return Header(tensors, metadata)


def check_name(name: str) -> str | None:
    """Return what forbids a tensor to be called so, or None."""
    if not name:
        return "its name is empty"
    return "its name holds a control character" if _CONTROL.search(name) else None


def _check_metadata(metadata: Any, file: Path) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise FormatError.about(file, "'__metadata__' is not an object", _REWRITE)
    for key, value in metadata.items():
        if not isinstance(value, str) or _SURROGATE.search(key + value):
            raise FormatError.about(file, f"'__metadata__' of {key!r} is not text", _REWRITE)
    return metadata


def _check_entry(name: str, entry: Any, data: int, file: Path) -> TensorInfo:
    """Check one entry by itself; ``data`` is where the tensors begin in the file."""

    def wrong(reason: str, remedy: str = _REWRITE) -> FormatError:
        return FormatError.about(file, reason, remedy, tensor=name)

    if (reason := check_name(name)) is not None:
        raise wrong(reason)
    if not isinstance(entry, dict):
        raise wrong("its entry is not an object")
    for field in ("dtype", "shape", "data_offsets"):
        if field not in entry:
            raise wrong(f"'{field}' is missing")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if (fault := _dtype_fault(dtype)) is not None:
        raise wrong(*fault)
    if (reason := _shape_fault(shape) or _offsets_fault(offsets)) is not None:
        raise wrong(reason)
    start, stop = offsets
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if stop - start != needed:
        raise wrong(f"shape {shape} of {dtype} takes {needed} bytes, data_offsets {stop - start}")
    return TensorInfo(name, dtype, tuple(shape), data + start, data + stop, file)


def _dtype_fault(dtype: Any) -> tuple[str, str] | None:
    if isinstance(dtype, str) and dtype in ITEM_BYTES:
        return None
    if dtype == "F64":
        return "its dtype F64 is double precision, which MLX computes nowhere but on the CPU", (
            "convert it to F32 first"
        )
    if isinstance(dtype, str) and dtype in _FLOAT8_AND_LESS:
        return f"its dtype {dtype} is valid, but MLX cannot load it", "convert it to BF16 first"
    return f"its dtype {dtype!r} is not one of safetensors", _REWRITE


def _shape_fault(shape: Any) -> str | None:
    if not isinstance(shape, list):
        return "its shape is not a list"
    if len(shape) > _LARGEST_RANK:
        return f"its shape has {len(shape)} dimensions (at most {_LARGEST_RANK})"
    for dimension in shape:
        if type(dimension) is not int:
            return f"its dimension {dimension!r} is not an integer"
        if not 0 <= dimension <= _LARGEST_DIMENSION:
            return f"its dimension {dimension} is not between 0 and 2^31 - 1"
    if math.prod(max(dimension, 1) for dimension in shape) > 2**60:
        return f"its shape {shape} overflows"
    return None


def _offsets_fault(offsets: Any) -> str | None:
    if not isinstance(offsets, list) or len(offsets) != 2:
        return "its data_offsets are not a pair"
    if not all(type(offset) is int for offset in offsets):
        return f"its data_offsets {offsets} are not integers"
    if not 0 <= offsets[0] <= offsets[1]:
        return f"its data_offsets {offsets} are negative or reversed"
    return None


def _check_layout(tensors: list[TensorInfo], data: int, size: int, file: Path) -> None:
    """Check that the tensors cover the file from ``data`` to its end, each byte once."""
    end = data
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.stop > size:
            reason = f"its data end at byte {tensor.stop} of a file of {size} bytes"
            raise FormatError.about(file, reason, _DOWNLOAD, tensor=tensor.name)
        if tensor.start != end:
            reason = (
                "its data overlap another tensor's"
                if tensor.start < end
                else (f"{tensor.start - end} bytes before its data belong to no tensor")
            )
            raise FormatError.about(file, reason, _REWRITE, tensor=tensor.name)
        end = tensor.stop
    if end != size:
        reason = f"{size - end} bytes at the end belong to no tensor"
        raise FormatError.about(file, reason, _REWRITE)
