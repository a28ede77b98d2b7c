"""The bytes of a file as an array and back, bit for bit."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_core.files.header import ITEM_BYTES

MLX_DTYPES: dict[str, mx.Dtype] = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "U64": mx.uint64,
    "I64": mx.int64,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "F32": mx.float32,
    "C64": mx.complex64,
    "F8_E4M3": mx.uint8,
    "F8_E8M0": mx.uint8,
}
_NUMPY_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16",
    "uint32": "U32", "int32": "I32", "uint64": "U64", "int64": "I64",
    "float16": "F16", "float32": "F32", "complex64": "C64",
}  # fmt: skip
_MLX_NAMES = {dtype: name for name, dtype in MLX_DTYPES.items() if not name.startswith("F8_")}
_CARRIERS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}

Array = mx.array | NDArray[np.generic]


def dtype_name(array: Array) -> str:
    """Return the safetensors name of an array's dtype, such as ``"BF16"``.

    Raises:
        ValueError: If safetensors or MLX on an accelerator has no such dtype (float64).

    Examples:
        >>> dtype_name(mx.zeros(2, dtype=mx.bfloat16)), dtype_name(np.zeros(2, np.float32))
        ('BF16', 'F32')
    """
    if isinstance(array, mx.array):
        name = _MLX_NAMES.get(array.dtype)
    else:
        name = _NUMPY_NAMES.get(array.dtype.name)
    if name is None:
        raise ValueError(f"an array of dtype {array.dtype} cannot be stored. Cast it to float32.")
    return name


def array_bytes(array: Array) -> NDArray[np.uint8]:
    """Return the bytes of an array as a file stores them: row by row, little-endian.

    Args:
        array: MLX or NumPy array of any shape and of a dtype that `dtype_name` knows.

    Returns:
        A flat array of ``array.nbytes`` bytes, sharing memory with ``array`` where it can.
        No bit is changed, those of NaNs and of negative zeros included.

    Raises:
        ValueError: If the dtype is another.
        RuntimeError: If MLX fails to compute the array.

    Examples:
        >>> bytes(array_bytes(np.array([1, 256], np.uint16)))
        b'\\x01\\x00\\x00\\x01'
    """
    dtype_name(array)
    if isinstance(array, mx.array):
        carrier = _CARRIERS[array.itemsize]
        flat = mx.contiguous(array.view(carrier)).reshape(-1)
        mx.eval(flat)  # NumPy would swallow an error and go on with what is in memory
        values = np.array(flat, copy=False)
    else:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        values = np.ascontiguousarray(little).reshape(-1)
    return values.view(np.uint8)


def array_from_bytes(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> mx.array:
    """Return the MLX array that these bytes are, no bit changed.

    Args:
        data: Flat array of bytes, little-endian.
        dtype: Safetensors name of the dtype, a key of `MLX_DTYPES`.
        shape: Shape of the result.

    Returns:
        A new array of that dtype and shape.

    Examples:
        >>> array_from_bytes(np.array([128, 63], np.uint8), "BF16", (1,)).tolist()
        [1.0]
    """
    size = ITEM_BYTES[dtype]
    carrier = mx.array(data.view(f"<u{size}"))
    return carrier.view(MLX_DTYPES[dtype]).reshape(shape)
