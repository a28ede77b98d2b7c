"""The checks that several functions share, each with its one message."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_core.factors.factors import Factors

Indices = Sequence[int] | NDArray[np.integer] | mx.array
"""Numbers of components, in any form that counts."""


def check_shape(name: str, array: mx.array, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless ``array`` has ``shape``."""
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {array.shape}.")


def check_factors(U: mx.array, S: mx.array, Vh: mx.array) -> None:
    """Raise unless these are floating and ``(out, r)``, ``(r,)``, ``(r, in)`` with a fitting r."""
    for name, array in zip(Factors._fields, (U, S, Vh), strict=True):
        if not mx.issubdtype(array.dtype, mx.floating):
            raise TypeError(f"`{name}` must be floating, got {array.dtype}.")
    shapes = U.shape, S.shape, Vh.shape
    rank = S.shape[0] if S.ndim == 1 else -1
    if U.ndim != 2 or Vh.ndim != 2 or U.shape[1] != rank or Vh.shape[0] != rank:
        raise ValueError(
            "`U`, `S` and `Vh` must have shapes (out, r), (r,) and (r, in), "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    limit = min(U.shape[0], Vh.shape[1])
    if rank > limit:
        raise ValueError(
            f"the rank must not exceed min(out, in) = {limit} for a layer of shape "
            f"{(U.shape[0], Vh.shape[1])}, got {rank}."
        )


def check_rank(rank: int, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless ``0 <= rank <= min(out, in)``."""
    limit = min(shape, default=0)
    if not 0 <= rank <= limit:
        raise ValueError(
            f"`rank` must be between 0 and min(out, in) = {limit} for a weight of shape "
            f"{shape}, got {rank}."
        )


def checked_indices(name: str, indices: Indices, rank: int) -> list[int]:
    """Return ``indices`` as a list, if they are distinct and from 0 to ``rank - 1``.

    Args:
        name: What they are called in an error.
        indices: Integers of any kind: a range, a list, a NumPy or an MLX array.
        rank: Number of components.

    Raises:
        TypeError: If they are not integers; a mask is no list of indices.
        ValueError: If one of them occurs twice or names no component.

    Examples:
        >>> checked_indices("indices", np.argsort([5.0, 3.0, 4.0])[:2], 3)
        [1, 2]
        >>> checked_indices("indices", [0, 0], 3)
        Traceback (most recent call last):
        ValueError: `indices` must hold distinct indices from 0 to rank - 1 = 2, got [0, 0].
        >>> checked_indices("indices", [True, False, True], 3)
        Traceback (most recent call last):
        TypeError: `indices` must hold integers, got bool; of a mask, take numpy.flatnonzero(mask).
    """
    array = np.atleast_1d(np.asarray(indices))
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"`{name}` must hold integers, got {array.dtype}; "
            "of a mask, take numpy.flatnonzero(mask)."
        )
    values = [int(value) for value in array.ravel()]
    if len(set(values)) != len(values) or not set(values) <= set(range(rank)):
        raise ValueError(
            f"`{name}` must hold distinct indices from 0 to rank - 1 = {rank - 1}, got {values}."
        )
    return values


def check_threshold(tau: float) -> None:
    """Raise ``ValueError`` if ``tau`` is negative or not a number.

    Examples:
        >>> check_threshold(-1.0)
        Traceback (most recent call last):
        ValueError: `tau` must not be negative, got -1.0.
    """
    if not tau >= 0:
        raise ValueError(f"`tau` must not be negative, got {tau}.")


def cast_factors(factors: Factors, dtypes: Sequence[mx.Dtype]) -> Factors:
    """Cast U, S and Vh; raise ``ValueError`` where a number is beyond its new type.

    Examples:
        >>> factors = Factors(mx.eye(2), mx.ones(2), mx.eye(2))
        >>> [part.dtype for part in cast_factors(factors, 3 * [mx.float16])]
        [mlx.core.float16, mlx.core.float16, mlx.core.float16]
    """
    cast = [a.astype(dtype) for a, dtype in zip(factors, dtypes, strict=True)]
    finite = [mx.isfinite(array).all() for array in cast]
    mx.eval(finite)  # at once: waiting for one after the other takes longer than the work
    for name, array, old, sound in zip(Factors._fields, cast, factors, finite, strict=True):
        if not sound.item():
            largest = mx.abs(old).max().item()
            raise ValueError(
                f"`{name}` reaches {largest:.3g}, which overflows {array.dtype}. Cast the layer to "
                "float32 or bfloat16 first."
            )
    return Factors(*cast)
