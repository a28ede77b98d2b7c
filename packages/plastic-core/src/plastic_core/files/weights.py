"""Named arrays, written to a safetensors file and read back bit for bit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from plastic_core.files.arrays import Array, array_from_bytes, dtype_name
from plastic_core.files.header import ITEM_BYTES
from plastic_core.files.memory import check_memory
from plastic_core.files.validate import open_safetensors
from plastic_core.files.writer import SafetensorsWriter, TensorSpec


def export_safetensors(
    path: str | os.PathLike[str],
    weights: Mapping[str, Array],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays to a safetensors file.

    Args:
        path: Name of the file, ending in ``.safetensors``. A file of that name is replaced
            when the new one is complete, and stays as it was if anything fails.
        weights: MLX or NumPy arrays by name, of any shape and of a dtype that both
            safetensors and MLX have, bfloat16 included.
        metadata: Strings to store beside them.

    Raises:
        ValueError: If ``path`` has another suffix or is a link, a name is not allowed, or
            an array is of another dtype (float64).
        TypeError: If something in ``weights`` is not an array.
        OSError: If the system refuses.

    Note:
        The bytes depend on the arrays, names and metadata alone, not on their order: the
        widest dtype comes first, which keeps every tensor aligned, then names decide.

    Examples:
        >>> export_safetensors("a.safetensors", {"w": mx.array([1.5], dtype=mx.bfloat16)})
        >>> load_safetensors("a.safetensors")
        {'w': array([1.5], dtype=bfloat16)}
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise ValueError(f"`path` must end in '.safetensors', got {os.fspath(path)!r}.")
    write_arrays(path, weights, metadata or {})


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """Write named arrays to a safetensors file of any name; see `export_safetensors`.

    Examples:
        >>> write_arrays("state.tmp", {"step": mx.array([7])}, {"seed": "0"})
        >>> read_arrays("state.tmp")
        ({'step': array([7], dtype=int32)}, {'seed': '0'})
    """
    specs = sorted(
        (_spec(name, array) for name, array in arrays.items()),
        key=lambda spec: (-ITEM_BYTES[spec.dtype], spec.name),
    )
    with SafetensorsWriter(path, specs, dict(sorted(metadata.items()))) as writer:
        for spec in specs:
            writer.write(spec.name, arrays[spec.name])


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, mx.array]:
    """Read every array of a safetensors file.

    Unlike ``mlx.core.load``, this checks the file against every rule of the format before
    anything is read, and the arrays do not depend on the file afterwards.

    Args:
        path: Name of the file.

    Returns:
        The arrays by name, in the order of the header; every bit as it is stored.

    Raises:
        FormatError: If the file breaks a rule, holds what MLX cannot, or does not fit into
            memory; the message names the file, the tensor and the rule.
        OSError: If the file does not exist or cannot be read.

    Examples:
        >>> export_safetensors("a.safetensors", {"b": mx.zeros(1), "a": mx.ones(2)})
        >>> list(load_safetensors("a.safetensors"))
        ['a', 'b']
    """
    return read_arrays(path)[0]


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Read every array of a safetensors file, and its metadata; see `load_safetensors`.

    Examples:
        >>> write_arrays("a.safetensors", {"w": mx.ones(1)}, {"format": "mlx"})
        >>> read_arrays("a.safetensors")[1]
        {'format': 'mlx'}
    """
    with open_safetensors(path) as file:
        tensors = file.header.tensors.values()
        check_memory(sum(info.nbytes for info in tensors), Path(path))
        arrays = {i.name: array_from_bytes(file.read(i), i.dtype, i.shape) for i in tensors}
        return arrays, file.header.metadata


def _spec(name: str, array: Array) -> TensorSpec:
    if not hasattr(array, "dtype"):
        raise TypeError(
            f"`weights` must map names to arrays, got {type(array).__name__} for {name!r}."
            " Flatten a tree with mlx.utils.tree_flatten first."
        )
    try:
        return TensorSpec(name, dtype_name(array), tuple(array.shape))
    except ValueError as error:
        error.add_note(f"while exporting {name!r}")
        raise
