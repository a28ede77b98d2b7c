"""The only calls of a factorisation: NumPy's LAPACK, on finite float64 matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def dense_singular_values(A: Float64) -> Float64:
    """Return the singular values, non-increasing and >= 0; not finite where they overflow."""
    return np.linalg.svd(A, compute_uv=False).astype(np.float64, copy=False)


def symmetric_eigen(A: Float64) -> tuple[Float64, Float64]:
    """Return the eigenvalues, non-decreasing, and eigenvectors of a symmetric matrix."""
    values, vectors = np.linalg.eigh(A)
    return values, vectors


def symmetric_eigenvalues(A: Float64) -> Float64:
    """Return the eigenvalues of `eigh` alone."""
    return np.linalg.eigvalsh(A).astype(np.float64, copy=False)
