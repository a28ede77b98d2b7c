"""The numbers of a tensor in a type of GGUF, and how far that is from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plastic_export.gguf.package import gguf_package

PLAIN = ("F32", "F16", "BF16")
TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""The types that all matrices can be given, by the name that users type."""

BLOCK = 32  # entries of a row that share a scale, in every type used here
_LARGEST_F16 = 65504.0


def encoded_rows(values: NDArray[np.float32], type: str) -> NDArray[np.uint8]:
    """Return the bytes of every row in a type of GGUF.

    Args:
        values: Finite, shape (..., in).
        type: Such as ``"F16"`` or ``"Q8_0"``.

    Returns:
        Shape (..., bytes of a row).

    Raises:
        ValueError: If a value does not fit.
    """
    package = gguf_package()
    largest = float(np.abs(values).max(initial=0.0))
    if type == "F16" and largest > _LARGEST_F16:
        raise ValueError(f"a value of {largest:.3g} does not fit F16; take --type bf16 or f32")
    rows = package.quants.quantize(np.ascontiguousarray(values), package.GGMLQuantizationType[type])
    return np.ascontiguousarray(rows).view(np.uint8)


def decoded_rows(rows: NDArray[np.uint8], type: str) -> NDArray[np.float32]:
    """Return the numbers that rows of `encoded_rows` stand for, shape (..., in)."""
    package = gguf_package()
    values: Any = package.quants.dequantize(rows, package.GGMLQuantizationType[type])
    return np.asarray(values, np.float32)


def fitting(type: str, shape: tuple[int, ...]) -> str:
    """Return the type that a tensor of this shape takes where all are to have ``type``.

    Vectors stay F32, as llama.cpp computes with them, and rows that are no whole number of blocks
    are F16.

    Examples:
        >>> fitting("Q8_0", (8, 64)), fitting("Q8_0", (64,)), fitting("Q8_0", (8, 50))
        ('Q8_0', 'F32', 'F16')
    """
    if len(shape) < 2:
        return "F32"
    return "F16" if type not in PLAIN and shape[-1] % BLOCK else type


def encoding_error(values: NDArray[np.float32], rows: NDArray[np.uint8], type: str) -> float:
    """Return the Frobenius norm of what the encoding changed over that of the values."""
    norm = float(np.linalg.norm(values))
    there = decoded_rows(rows, type).reshape(values.shape)
    return float(np.linalg.norm(there - values)) / norm if norm else 0.0
