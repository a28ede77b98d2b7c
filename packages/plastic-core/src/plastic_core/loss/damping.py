"""Gram matrices, dense or in blocks: their size, their damping, their Cholesky factor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plastic_core import linalg
from plastic_core.factors.quantize import best_group
from plastic_core.linalg import Float64, Matrix

LONGEST_BLOCK = 1024
"""The longest side of a block that `block_side` gives (heuristic)."""


def block_side(n: int) -> int:
    """Return the side of the blocks in which a Gram of side n is kept where it is too large.

    Args:
        n: Side of the Gram.

    Returns:
        A divisor of n of at most 1024, the largest that whole groups of 128, 64 or 32 fill; 1, a
        diagonal, where there is none.

    Examples:
        >>> block_side(14336), block_side(100)
        (1024, 1)
    """
    group = best_group(n)
    if group is None:
        return 1
    return max(side for side in range(group, LONGEST_BLOCK + 1, group) if n % side == 0)


def gram_side(gram: Matrix) -> int:
    """n of a Gram of shape ``(n, n)`` or of blocks ``(n / b, b, b)``."""
    return math.prod(np.shape(gram)[:-1])


def check_gram(gram: Matrix, damping: float, shrinkage: float = 0.0) -> NDArray[Any]:
    """Return a Gram as a NumPy array; raise unless `damped_gram` can damp and shrink it."""
    if not 0 <= damping < math.inf:
        raise ValueError(f"`damping` must be finite and not negative, got {damping}.")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"`shrinkage` must be from 0 to 1, got {shrinkage}.")
    G = linalg.to_numpy(gram)
    if G.ndim not in (2, 3) or G.shape[-1] != G.shape[-2]:
        raise ValueError(
            f"`gram` must be a square matrix, or blocks of one, got an array of shape {G.shape}."
        )
    if G.dtype.kind != "f":
        raise TypeError(f"`gram` must hold floating-point numbers, got {G.dtype}.")
    linalg.check_finite(G, "gram")
    trace = float(np.einsum("...ii->...", G, dtype=np.float64).sum())
    if not trace > 0:
        raise ValueError(
            f"`gram` must have a positive trace, got {trace:g}: nothing was measured. Treat this "
            "matrix without a Gram."
        )
    return G


def damping_power(gram: NDArray[Any], damping: float) -> float:
    """Return ``damping * (trace(gram) / n)``."""
    power: NDArray[Any] = np.einsum("...ii->...i", gram)
    total = float(power.sum(dtype=np.float64))
    return damping * total / power.size


def damped_gram(gram: NDArray[Any], damping: float, shrinkage: float = 0.0) -> Float64:
    """Return a new matrix: the Gram shrunk by `shrink`, and ``damping * (trace / n) * I``."""
    G = gram.astype(np.float64)
    shrink(G, shrinkage)
    diagonal = np.einsum("...ii->...i", G)  # a view
    diagonal += damping_power(gram, damping)
    return G


def shrink(G: Float64, shrinkage: float) -> None:
    """Replace a Gram, or its blocks, by ``(1 - s) G + s diag(G)``, in its memory."""
    if not shrinkage:
        return
    diagonal = np.einsum("...ii->...i", G)  # a view
    power = diagonal.copy()
    G *= 1 - shrinkage
    diagonal[:] = power


def damped_cholesky(G: Float64) -> Float64:
    """Return the lower Cholesky factor of a damped Gram, or of its blocks, in its memory."""
    try:
        if G.ndim == 2:
            return linalg.cholesky(G, overwrite=True)
        if G.shape[1] == 1 and (G > 0).all():
            return np.sqrt(G, out=G)
        for block in G:
            block[:] = linalg.cholesky(block)
        return G
    except ValueError as error:
        raise ValueError(
            "`gram` must be positive definite after the damping, but is not. If it is positive "
            "semidefinite, increase `damping`."
        ) from error
