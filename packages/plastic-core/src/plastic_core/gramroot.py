"""A square root of a Gram matrix, damped so that it can be inverted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from plastic_core import linalg
from plastic_core.linalg import Float64, Matrix


@dataclass(frozen=True)
class GramRoot:
    """A matrix L with ``L @ L.T`` equal to a damped Gram, made once and shared.

    L is the Cholesky factor. Every other square root is ``L @ Q`` with an orthogonal Q, which
    changes no singular value of ``L.T @ A`` or ``A @ L``; and a Cholesky factor costs a sixth of
    an eigendecomposition.

    Attributes:
        root: L, lower triangular with a positive diagonal, shape ``(n, n)``, float64; None for the
            identity of any size, of which nothing is stored or computed.
    """

    root: Float64 | None

    @classmethod
    def of(cls, gram: Matrix | None, *, damping: float) -> Self:
        """Factor ``gram + damping * (trace(gram) / n) * I``.

        Args:
            gram: Mean of ``x x^T``, symmetric positive semidefinite of shape ``(n, n)``; None
                stands for the identity.
            damping: What is added to every eigenvalue, as a fraction of their mean; not negative,
                and positive where the Gram is singular.

        Raises:
            TypeError: If ``gram`` does not hold floating-point numbers.
            ValueError: If ``gram`` is not square, not finite, zero, or not positive definite after
                the damping, or ``damping`` is negative or not finite.

        Note:
            ``n^3 / 3`` operations in float64, memory for three matrices of its size.
        """
        return cls(None if gram is None else cholesky(damped_gram(gram, damping)))

    @property
    def size(self) -> int | None:
        """n; None for the identity, which fits every matrix."""
        return None if self.root is None else len(self.root)

    def times_root(self, A: NDArray[Any]) -> NDArray[Any]:
        """``A @ L`` for ``A (k, n)``, float64; ``A`` itself for the identity."""
        return A if self.root is None else A @ self.root

    def root_times(self, A: NDArray[Any]) -> NDArray[Any]:
        """``L.T @ A`` for ``A (n, k)``, float64; ``A`` itself for the identity."""
        return A if self.root is None else self.root.T @ A

    def inverse_root_times(self, A: NDArray[Any]) -> NDArray[Any]:
        """``inverse(L.T) @ A`` for ``A (n, k)``, float64: undoes `root_times`."""
        return A if self.root is None else linalg.solve_transposed(self.root, A)

    def times_inverse_root(self, A: NDArray[Any]) -> NDArray[Any]:
        """``A @ inverse(L)`` for ``A (k, n)``, float64: undoes `times_root`."""
        return self.inverse_root_times(A.T).T


def damped_gram(gram: Matrix, damping: float) -> Float64:
    """A new matrix ``gram + damping * (trace(gram) / n) * I``, float64: see `GramRoot.of`."""
    if not 0 <= damping < math.inf:
        raise ValueError(f"`damping` must be finite and not negative, got {damping}.")
    R = linalg.to_numpy(gram)
    if R.ndim != 2 or R.shape[0] != R.shape[1]:
        raise ValueError(f"`gram` must be a square matrix, got an array of shape {R.shape}.")
    if R.dtype.kind != "f":
        raise TypeError(f"`gram` must hold floating-point numbers, got {R.dtype}.")
    linalg.check_finite(R, "gram")
    H = R.astype(np.float64)
    mean = float(np.trace(H)) / max(1, len(H))
    if not mean > 0:
        raise ValueError(
            f"`gram` must have a positive trace, got {mean * len(H):g}: nothing was measured. "
            "Treat this matrix without a Gram."
        )
    H[np.diag_indices_from(H)] += damping * mean
    return H


def cholesky(H: Float64) -> Float64:
    """The Cholesky factor of a damped Gram, lower triangular."""
    try:
        return linalg.cholesky(H)
    except ValueError as error:
        raise ValueError(
            "`gram` must be positive definite after the damping, but is not. If it is positive "
            "semidefinite, increase `damping`."
        ) from error
