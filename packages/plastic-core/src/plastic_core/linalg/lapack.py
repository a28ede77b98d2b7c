"""The only calls of a factorisation: NumPy's LAPACK, finite going in and coming out.

MLX factorises on the CPU only, always returns square factors, and on Linux an infinity ends the
process. NumPy reads the memory of an MLX array without a copy. Its LAPACK works in float64.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from plastic_core.linalg.arrays import Float32, Float64, check_finite
from plastic_core.linalg.threads import one_blas_thread, product

Array = TypeVar("Array", bound=NDArray[Any])

PANEL = 128
"""Rows of a block of a substitution."""
COLUMNS = 256
"""Columns that a Cholesky factorisation leaves to LAPACK."""


def checked(result: Array) -> Array:
    """Return ``result`` unless a number in it is beyond its type."""
    if not np.isfinite(result).all():
        raise ValueError(
            f"The factorisation overflows {result.dtype}. Scale the matrix down first."
        )
    return result


def svd(A: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Thin SVD of a finite matrix or a stack of them, in its dtype; the work is done in float64."""
    with np.errstate(over="ignore"):
        U, S, Vh = np.linalg.svd(A, full_matrices=False)
    return U, checked(S), Vh


def svdvals(A: NDArray[Any]) -> Float64:
    """Return the singular values of a finite matrix or a stack of them, float64."""
    S: Float64 = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    return checked(S)


def packed_qr(A: Float32) -> tuple[Float32, Float32]:
    """Householder vectors and R in one array, and the scales tau, as ``geqrf`` leaves them."""
    packed, tau = np.linalg.qr(A, mode="raw")
    return packed.T, tau


def eigh(A: NDArray[Any]) -> tuple[Float64, Float64]:
    """Return eigenvalues and eigenvectors of a symmetric matrix, float64, the largest first.

    Args:
        A: Symmetric matrix of shape ``(n, n)``; only its lower triangle is read.

    Returns:
        The eigenvalues ``(n,)``, non-increasing, and ``V (n, n)`` with orthonormal columns, such
        that ``A = V @ diag(eigenvalues) @ V.T``.

    Raises:
        ValueError: If ``A`` is not finite.

    Examples:
        >>> values, V = eigh(np.diag([1.0, 9.0]))
        >>> values.tolist(), abs(V).tolist()
        ([9.0, 1.0], [[0.0, 1.0], [1.0, 0.0]])
    """
    check_finite(A, "A")
    values, vectors = np.linalg.eigh(A.astype(np.float64, copy=False))
    return checked(values)[::-1], checked(vectors)[:, ::-1]


def eigvalsh(A: NDArray[Any]) -> Float64:
    """Return the eigenvalues of `eigh` alone."""
    check_finite(A, "A")
    values: Float64 = np.linalg.eigvalsh(A.astype(np.float64, copy=False))
    return checked(values)[::-1]


def cholesky(A: NDArray[Any], *, overwrite: bool = False) -> Float64:
    """Lower triangular ``L`` with a positive diagonal and ``A = L @ L.T``, in float64.

    Args:
        A: Symmetric positive definite matrix of shape ``(n, n)``; only its lower triangle is read.
        overwrite: Whether L may take the memory of ``A``, if that is float64.

    Raises:
        ValueError: If ``A`` is not finite, or not positive definite to working precision.

    Note:
        ``n^3 / 3`` operations, the same bits for any number of threads. Panels of 256 columns, so
        that little memory is needed beside L.

    Examples:
        >>> cholesky(np.array([[4.0, 2.0], [2.0, 2.0]])).tolist()
        [[2.0, 0.0], [1.0, 1.0]]
    """
    check_finite(A, "A")
    L = A.astype(np.float64, copy=not overwrite)
    with one_blas_thread():
        for start in range(0, len(L), COLUMNS):
            _factor_columns(L, slice(start, min(start + COLUMNS, len(L))))
    return checked(L)


def _factor_columns(L: Float64, panel: slice) -> None:
    """Factor some columns in place, those before them being factored already."""
    L[panel.start :, panel] -= product(L[panel.start :, : panel.start], L[panel, : panel.start].T)
    try:
        L[panel, panel] = np.linalg.cholesky(L[panel, panel])
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"`A` must be positive definite, but its leading {panel.stop} rows are not. Add a "
            "positive multiple of the identity."
        ) from error
    L[panel, panel.stop :] = 0
    inverse = np.linalg.inv(L[panel, panel])
    L[panel.stop :, panel] = product(L[panel.stop :, panel], inverse.T)


def solve_transposed(L: NDArray[Any], Y: NDArray[Any]) -> NDArray[Any]:
    """Return ``inverse(L).T @ Y``, by back substitution over blocks of rows.

    Args:
        L: Lower triangular matrix of shape ``(n, n)`` with a positive diagonal: see `cholesky`.
        Y: Matrix of shape ``(n, c)``.

    Returns:
        Shape ``(n, c)``, float32 where both are, else float64; the same bits for any number of
        threads.

    Note:
        ``n^2 c`` operations in matrix products, ``128 n c`` of them with inverted blocks.

    Examples:
        >>> L = np.array([[2.0, 0.0], [1.0, 1.0]])
        >>> solve_transposed(L, L.T @ np.array([[3.0], [5.0]])).tolist()
        [[3.0], [5.0]]
    """
    X = Y.astype(np.result_type(L, Y, np.float32))
    for stop in range(len(L), 0, -PANEL):
        rows = slice(max(0, stop - PANEL), stop)
        if stop < len(L):
            X[rows] -= product(L[stop:, rows].T, X[stop:])
        X[rows] = product(np.linalg.inv(L[rows, rows]).T, X[rows])
    return checked(X)
