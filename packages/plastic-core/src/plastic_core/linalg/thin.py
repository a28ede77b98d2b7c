"""Thin factorisations of a matrix of any shape and magnitude."""

from __future__ import annotations

import numpy as np

from plastic_core.linalg import lapack
from plastic_core.linalg.arrays import Float32, Float64, Matrix, as_matrix, as_stack
from plastic_core.linalg.reflectors import HouseholderQR, householder_qr


def thin_svd(A: Matrix) -> tuple[Float32, Float32, Float32]:
    """Thin singular value decomposition.

    Args:
        A: Matrix of shape ``(m, n)``; ``k = min(m, n)``. Or a stack of shape ``(..., m, n)``:
            one call for many small matrices.

    Returns:
        ``U (m, k)`` with orthonormal columns, ``S (k,)`` non-negative and non-increasing, and
        ``Vh (k, n)`` with orthonormal rows, float32, such that ``A = U @ diag(S) @ Vh``; with the
        leading axes of the stack.

    Raises:
        ValueError: If ``A`` is not a finite matrix or a singular value is beyond float32.

    Examples:
        >>> U, S, Vh = thin_svd(np.array([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]]))
        >>> U.shape, S.round(5).tolist(), Vh.shape
        ((3, 2), [3.0, 2.0], (2, 2))
    """
    A = as_stack(A)
    if A.shape[-2] < A.shape[-1]:
        V, S, Uh = thin_svd(np.swapaxes(A, -1, -2))
        return np.swapaxes(Uh, -1, -2), S, np.swapaxes(V, -1, -2)
    if A.ndim > 2:
        return lapack.svd(A)
    factored = householder(A)
    U, S, Vh = lapack.svd(factored.T)
    return factored.times(U), S, Vh


def thin_singular_values(A: Matrix) -> Float64:
    """Return the ``min(m, n)`` singular values of ``A``, float64, non-negative and non-increasing.

    A stack of shape ``(..., m, n)`` gives an array of shape ``(..., min(m, n))``.

    Examples:
        >>> thin_singular_values(np.array([[0.0, 2.0], [3.0, 0.0]])).round(6).tolist()
        [3.0, 2.0]
    """
    A = as_stack(A)
    if A.ndim > 2:
        return lapack.svdvals(A)
    return lapack.svdvals(householder(A.T if A.shape[0] < A.shape[1] else A).T)


def householder(A: Matrix) -> HouseholderQR:
    """Thin QR ``A = Q @ T`` that keeps ``Q (m, k)`` as reflectors, for products ``Q @ P``."""
    with np.errstate(over="ignore", invalid="ignore"):
        factored = householder_qr(as_matrix(A))
    lapack.checked(factored.T)
    return factored


def qr(A: Matrix) -> tuple[Float32, Float32]:
    """Factor thinly in float32: ``Q (m, k)`` is orthonormal, ``T (k, n)`` upper triangular.

    Examples:
        >>> Q, T = qr(np.array([[3.0, 1.0], [4.0, 2.0], [0.0, 0.0]]))
        >>> Q.shape, T.shape, bool(np.allclose(Q.T @ Q, np.eye(2), atol=1e-6))
        ((3, 2), (2, 2), True)
    """
    factored = householder(A)
    return factored.times(np.eye(len(factored.T), dtype=np.float32)), factored.T
