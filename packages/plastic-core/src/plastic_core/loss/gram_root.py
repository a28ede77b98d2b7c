"""A square root of a Gram matrix, damped so that it can be inverted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from plastic_core import linalg
from plastic_core.linalg import Float64, Matrix

BLOCK = 1024  # the longest side of a block that `block_side` gives (heuristic)


@dataclass(frozen=True)
class GramRoot:
    """A matrix L with ``L @ L.T`` equal to a damped Gram, made once and shared.

    L is the Cholesky factor. Every other square root is ``L @ Q`` with an orthogonal Q, which
    changes no singular value of ``L.T @ A`` or ``A @ L``; and a Cholesky factor costs a sixth of
    an eigendecomposition.

    Attributes:
        root: L, lower triangular with a positive diagonal, shape ``(n, n)``, float64; for a
            block-diagonal Gram its blocks, shape ``(n / b, b, b)``; None for the identity of any
            size, of which nothing is stored or computed.
    """

    root: Float64 | None

    @classmethod
    def of(cls, gram: Matrix | None, *, damping: float) -> Self:
        """Factor ``gram + damping * (trace(gram) / n) * I``.

        Args:
            gram: Mean of ``x x^T``, symmetric positive semidefinite of shape ``(n, n)``; the blocks
                of a block-diagonal one, shape ``(n / b, b, b)``, of a diagonal one for b = 1; None
                stands for the identity.
            damping: What is added to every eigenvalue, as a fraction of their mean; not negative,
                and positive where the Gram is singular.

        Raises:
            TypeError: If ``gram`` does not hold floating-point numbers.
            ValueError: If ``gram`` is not square, not finite, zero, or not positive definite after
                the damping, or ``damping`` is negative or not finite.

        Note:
            ``n b^2 / 3`` operations in float64, b = n without blocks; memory for three matrices of
            its size.
        """
        return cls(None if gram is None else damped_cholesky(damped_gram(gram, damping)))

    @property
    def size(self) -> int | None:
        """n; None for the identity, which fits every matrix."""
        return None if self.root is None else gram_side(self.root)

    def times_root(self, A: NDArray[Any]) -> NDArray[Any]:
        """``A @ L`` for ``A (k, n)``, float64; ``A`` itself for the identity."""
        if self.root is None or self.root.ndim == 2:
            return A if self.root is None else A @ self.root
        return self._per_block(A.T, lambda block, rows: block.T @ rows).T

    def root_times(self, A: NDArray[Any]) -> NDArray[Any]:
        """``L.T @ A`` for ``A (n, k)``, float64; ``A`` itself for the identity."""
        if self.root is None or self.root.ndim == 2:
            return A if self.root is None else self.root.T @ A
        return self._per_block(A, lambda block, rows: block.T @ rows)

    def inverse_root_times(self, A: NDArray[Any]) -> NDArray[Any]:
        """``inverse(L.T) @ A`` for ``A (n, k)``, float64: undoes `root_times`."""
        if self.root is None or self.root.ndim == 2:
            return A if self.root is None else linalg.solve_transposed(self.root, A)
        return self._per_block(A, linalg.solve_transposed)

    def times_inverse_root(self, A: NDArray[Any]) -> NDArray[Any]:
        """``A @ inverse(L)`` for ``A (k, n)``, float64: undoes `times_root`."""
        return self.inverse_root_times(A.T).T

    def _per_block(
        self, A: NDArray[Any], f: Callable[[Float64, NDArray[Any]], NDArray[Any]]
    ) -> Float64:
        """``f`` of every block of L and the rows of ``A (n, k)`` that it meets."""
        assert self.root is not None
        side = self.root.shape[1]
        if side == 1:  # one number at a time would take a call for each
            one = self.root[:, 0]
            return A / one if f is linalg.solve_transposed else A * one
        result = np.empty(A.shape)
        for start, block in zip(range(0, len(A), side), self.root, strict=True):
            result[start : start + side] = f(block, A[start : start + side])
        return result


def block_side(n: int) -> int:
    """The side of the blocks in which a Gram of side n is kept where it is too large to be dense.

    A divisor of n of at most `BLOCK`, the largest that whole groups of 128, 64 or 32 fill; 1, a
    diagonal, where there is none.
    """
    group = next((g for g in (128, 64, 32) if n % g == 0), None)
    if group is None:
        return 1
    return max(side for side in range(group, BLOCK + 1, group) if n % side == 0)


def gram_side(gram: Matrix) -> int:
    """n of a Gram of shape ``(n, n)`` or of blocks ``(n / b, b, b)``."""
    return math.prod(np.shape(gram)[:-1])


def damped_gram(gram: Matrix, damping: float) -> Float64:
    """A new matrix ``gram + damping * (trace(gram) / n) * I``, float64: see `GramRoot.of`."""
    if not 0 <= damping < math.inf:
        raise ValueError(f"`damping` must be finite and not negative, got {damping}.")
    R = linalg.to_numpy(gram)
    if R.ndim not in (2, 3) or R.shape[-1] != R.shape[-2]:
        raise ValueError(
            f"`gram` must be a square matrix, or blocks of one, got an array of shape {R.shape}."
        )
    if R.dtype.kind != "f":
        raise TypeError(f"`gram` must hold floating-point numbers, got {R.dtype}.")
    linalg.check_finite(R, "gram")
    H = R.astype(np.float64)
    diagonal = np.einsum("...ii->...i", H)  # a view
    mean = float(diagonal.sum()) / max(1, diagonal.size)
    if not mean > 0:
        raise ValueError(
            f"`gram` must have a positive trace, got {mean * diagonal.size:g}: nothing was "
            "measured. Treat this matrix without a Gram."
        )
    diagonal += damping * mean
    return H


def damped_cholesky(H: Float64) -> Float64:
    """The Cholesky factor of a damped Gram, lower triangular; of its blocks where it has them."""
    try:
        if H.ndim == 2:
            return linalg.cholesky(H)
        if H.shape[1] == 1 and (H > 0).all():
            return np.sqrt(H)
        return np.stack([linalg.cholesky(block) for block in H])
    except ValueError as error:
        raise ValueError(
            "`gram` must be positive definite after the damping, but is not. If it is positive "
            "semidefinite, increase `damping`."
        ) from error
