"""Arrays in and out: finite, float32, sharing memory where NumPy and MLX can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[Any] | mx.array
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

BLOCK = 2**21
"""Entries of one float64 block: 16 MiB."""


def generator(key: int | mx.array) -> np.random.Generator:
    """Return the NumPy generator of a seed, or of a key of ``mx.random.key``."""
    return np.random.default_rng(np.asarray(key).ravel())


def to_numpy(array: Matrix) -> NDArray[Any]:
    """Return the same numbers as a NumPy array; bfloat16 becomes float32, which is exact.

    Examples:
        >>> to_numpy(mx.array([1.5, -2.0], dtype=mx.bfloat16))
        array([ 1.5, -2. ], dtype=float32)
    """
    if isinstance(array, mx.array):
        if array.dtype == mx.bfloat16:
            array = array.astype(mx.float32, stream=mx.cpu)
        mx.eval(array)  # NumPy would hide that it failed
    return np.asarray(array)


def check_finite(array: NDArray[Any], name: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        ValueError: Naming the number of entries that are not finite and the first of them.

    Examples:
        >>> check_finite(np.array([1.0, np.inf]), "x")
        Traceback (most recent call last):
        ValueError: `x` must be finite in float64, but 1 of its 2 entries are not, ...
    """
    width = array.size // max(1, len(array))
    if all(np.isfinite(array[rows]).all() for rows in blocks(len(array), width)):
        return
    wrong = ~np.isfinite(array)
    first = tuple(int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
    raise ValueError(
        f"`{name}` must be finite in {array.dtype}, but {wrong.sum()} of its {array.size} entries "
        f"are not, the first at {first}. Repair or exclude it first."
    )


def as_matrix(A: Matrix, name: str = "A") -> Float32:
    """Return ``A`` as a finite float32 matrix, sharing its memory where it already is one.

    Args:
        A: Matrix of shape ``(m, n)``, NumPy or MLX, of float16, bfloat16, float32 or float64.
        name: What error messages call it.

    Returns:
        Array of shape ``(m, n)``. It may be the caller's memory: do not write into it.

    Raises:
        TypeError: If the entries are not real floating-point numbers.
        ValueError: If ``A`` has not two axes, or an entry is NaN, infinite or beyond float32.

    Examples:
        >>> as_matrix(mx.array([[1.0, 2.0]], dtype=mx.bfloat16))
        array([[1., 2.]], dtype=float32)
    """
    return _as_float32(A, name, axes=2)


def as_vector(s: Matrix, name: str = "s") -> Float32:
    """Return ``s`` as a finite float32 vector, under the terms of `as_matrix`.

    Examples:
        >>> as_vector(np.array([1.0, 2.0]))
        array([1., 2.], dtype=float32)
    """
    return _as_float32(s, name, axes=1)


def as_stack(A: Matrix, name: str = "A") -> Float32:
    """Return a stack of matrices ``(..., m, n)`` as finite float32: see `as_matrix`."""
    return _as_float32(A, name, axes=max(2, np.ndim(A)))


def _as_float32(array: Matrix, name: str, axes: int) -> Float32:
    array = to_numpy(array)
    if array.ndim != axes:
        kind = "vector" if axes == 1 else "matrix"
        raise ValueError(f"`{name}` must be a {kind}, got an array of shape {array.shape}.")
    if array.dtype.kind != "f":
        raise TypeError(
            f"`{name}` must hold floating-point numbers, got {array.dtype}. "
            "Dequantise or cast it first."
        )
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32, copy=False)
    check_finite(converted, name)
    return converted


def scaled(A: Float32) -> tuple[Float32, int]:
    """Return ``B`` and e with ``A = B * 2^e`` exactly and the largest entry of B in [0.5, 1).

    What is smaller than ``2^-126`` of the largest entry may lose bits. Zero comes back with e = 0.
    """
    exponent = int(np.frexp(np.abs(A).max(initial=0.0))[1])
    B: Float32 = np.ldexp(A, -exponent)
    return B, exponent


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices that cover ``range(count)``, each of at most 16 MiB in float64 at that width.

    Examples:
        >>> list(blocks(5, 2**20))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, BLOCK // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
