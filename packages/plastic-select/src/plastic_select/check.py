"""Checks of arguments, made once, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import mlx.core as mx


def checked_matrix(A: ArrayLike | mx.array, name: str = "A") -> NDArray[np.float64]:
    """Return ``A`` as a finite, non-empty float64 matrix.

    Args:
        A: Anything that NumPy reads as a real matrix, or an MLX array of real numbers, bfloat16
            included. It is not modified.
        name: What error messages call it.

    Raises:
        TypeError: If the entries are not real numbers, or are what MLX packs weights in (uint32).
        ValueError: If it is not a matrix, is empty, or holds NaN or infinities.
    """
    array = _as_float64(A, name)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"`{name}` must be a matrix with at least one row and one column, "
            f"got shape {array.shape}."
        )
    _refuse_non_finite(array, name)
    return array


def as_square(M: ArrayLike | mx.array, name: str = "M") -> NDArray[np.float64]:
    """Return ``M`` as :func:`as_matrix` does, after checking that it is square."""
    array = checked_matrix(M, name)
    if array.shape[0] != array.shape[1]:
        raise ValueError(f"`{name}` must be square, got shape {array.shape}.")
    return array


def as_spectrum(
    singular_values: ArrayLike, *, shape: tuple[int, int] | None = None
) -> NDArray[np.float64]:
    """Return ``singular_values`` as float64 after checking that they can be a spectrum.

    Args:
        singular_values: Non-negative and non-increasing, at least one.
        shape: Shape ``(m, n)`` of the matrix they belong to; there must be ``min(m, n)`` of them.

    Raises:
        TypeError: If they are not real numbers.
        ValueError: If they are not such a list, or their number does not fit the shape.
    """
    s = _as_float64(singular_values, "singular_values")
    if s.ndim != 1 or s.size == 0:
        raise ValueError(
            f"`singular_values` must be a list of at least one value, got shape {s.shape}."
        )
    _refuse_non_finite(s, "singular_values")
    if s[-1] < 0 or (s[1:] > s[:-1]).any():
        raise ValueError(
            "`singular_values` must be non-negative and non-increasing; sort them first."
        )
    if shape is not None and s.size != min(as_shape(shape)):
        raise ValueError(
            f"`singular_values` must hold min(m, n) = {min(shape)} values for a matrix of shape "
            f"{tuple(shape)}, got {s.size}."
        )
    return s


def as_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return ``shape`` as two integers of at least 1."""
    for side in shape:
        check_number("shape", side)
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(
            f"`shape` must be two integers of at least 1 (rows, columns), got {tuple(shape)}."
        )
    m, n = shape
    return int(m), int(n)


def check_number(name: str, value: Any) -> None:
    """Refuse what is not one real number, such as a string that spells one."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__") or np.ndim(value):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")


def check_target(target_compression: float) -> None:
    """Refuse a ``target_compression`` outside [0, 1)."""
    check_number("target_compression", target_compression)
    if not 0 <= target_compression < 1:
        raise ValueError(
            "`target_compression` must be at least 0 and below 1 (the fraction of the dense "
            f"parameters that is removed), got {target_compression}."
        )


def check_retained_energy(retained_energy: float) -> None:
    """Refuse a ``retained_energy`` outside (0, 1]."""
    check_number("retained_energy", retained_energy)
    if not 0 < retained_energy <= 1:
        raise ValueError(
            "`retained_energy` must be above 0 and at most 1 (a fraction of the sum of the "
            f"squared singular values), got {retained_energy}."
        )


def _as_float64(values: Any, name: str) -> NDArray[np.float64]:
    if type(values).__module__ == "mlx.core":
        values = _mlx_to_numpy(values, name)
    try:
        array = np.asarray(values)
        if array.dtype.kind in "cSUMmV":
            raise TypeError(f"dtype {array.dtype}")
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must hold real numbers that NumPy can read: {error}.") from error


def _mlx_to_numpy(array: mx.array, name: str) -> NDArray[Any]:
    import mlx.core as mx  # loaded already: the caller has made an array with it

    if array.dtype == mx.uint32:
        raise TypeError(
            f"`{name}` must hold numbers, got {array.dtype}. Dequantize packed weights first "
            "(mx.dequantize)."
        )
    # NumPy has no bfloat16; float32 holds each of its values exactly.
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def _refuse_non_finite(array: NDArray[np.float64], name: str) -> None:
    bad = ~np.isfinite(array)
    count = int(np.count_nonzero(bad))
    if count:
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape))
        raise ValueError(
            f"`{name}` must be finite, got {count} NaN or infinite of {array.size} entries, "
            f"the first at {index}."
        )
