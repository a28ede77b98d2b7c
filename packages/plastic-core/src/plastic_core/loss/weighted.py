"""The best output basis of a linear map under the Gram of its inputs."""

from __future__ import annotations

from math import isqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plastic_core import linalg
from plastic_core.linalg import Float32, Float64, Matrix, arrays, as_matrix, blocks
from plastic_core.linalg.lapack import eigvalsh
from plastic_core.linalg.thin import householder


class OutputBasis(NamedTuple):
    """An orthonormal basis of the outputs, most important direction first.

    Attributes:
        U: Shape ``(m, k)``, ``k = min(m, n)``, float32, orthonormal columns.
        singular_values: Shape ``(k,)``, float64, those of ``A R^(1/2)``, non-increasing. What is
            below 1.5e-8 sqrt(max(m, n)) of the largest is rounding, and 0.

    Examples:
        >>> basis = output_basis(np.diag(np.float32([3, 2])))
        >>> abs(basis.U).round(5).tolist(), basis.singular_values.round(5).tolist()
        ([[1.0, 0.0], [0.0, 1.0]], [3.0, 2.0])
    """

    U: Float32
    singular_values: Float64


def output_basis(A: Matrix, *, gram: Matrix | None = None) -> OutputBasis:
    r"""Return the basis whose first r directions are the best, for every r at once.

    With :math:`R = E[x x^T]`, the mean squared output error of :math:`A' x` in place of
    :math:`A x` is :math:`\|(A - A') R^{1/2}\|_F^2`. Over all :math:`A'` of rank r it is least for

    .. math::

        A' = U_r U_r^T A, \qquad A R A^T = U \Lambda U^T,

    where it equals :math:`\sum_{i > r} \lambda_i`. Nothing is inverted, so a singular R does no
    harm: the directions that R does not see come last, in the order of their energy in A alone.
    The basis is complete, :math:`U U^T A = A` whatever R.

    Args:
        A: Matrix of shape ``(m, n)``, NumPy or MLX, any floating dtype.
        gram: R, symmetric positive semidefinite of shape ``(n, n)``, float32 or better; None
            stands for the identity. Directions that few inputs leave unseen are told from rounding
            only if R was accumulated in float64.

    Returns:
        The basis and the spectrum of ``A R^(1/2)``.

    Raises:
        TypeError: If an argument does not hold floating-point numbers.
        ValueError: If ``A`` or ``gram`` is not finite, or ``gram`` does not fit ``A``.

    Note:
        A QR in float32 where ``m > n``, then one symmetric eigendecomposition of order k in
        float64. Memory beyond ``A``, U and R: the reflectors of the QR, O(k^2), blocks of 16 MiB.

    Examples:
        >>> A, R = np.diag(np.float32([3, 2])), np.diag([1.0, 4.0])
        >>> output_basis(A, gram=R).singular_values.round(5).tolist()
        [4.0, 3.0]

    References:
        Swift-SVD, arXiv 2604.01609: the eigendecomposition of the output covariance.
    """
    A, R = as_matrix(A), _checked_gram(gram, A.shape[1])
    factored = householder(A) if A.shape[0] > A.shape[1] else None
    T = A if factored is None else factored.T
    energies, P = linalg.eigh(_output_gram(T, R))
    unseen = _unseen(energies, T)
    if R is not None and unseen.any():
        P[:, unseen] = _by_plain_energy(P[:, unseen], T)
    U = P.astype(np.float32)
    return OutputBasis(U if factored is None else factored.times(U), _roots(energies, unseen))


def weighted_spectrum(A: Matrix, *, gram: Matrix | None = None) -> Float64:
    """Return the singular values of ``A R^(1/2)``: those of `output_basis`, at less expense.

    Args:
        A: Matrix of shape ``(m, n)``.
        gram: R of shape ``(n, n)``; None stands for the identity.

    Returns:
        Shape ``(min(m, n),)``, float64, non-negative and non-increasing.

    Raises:
        TypeError: If an argument does not hold floating-point numbers.
        ValueError: If ``A`` or ``gram`` is not finite, or ``gram`` does not fit ``A``.

    Examples:
        >>> A, R = np.diag(np.float32([3, 2])), np.diag([1.0, 4.0])
        >>> weighted_spectrum(A, gram=R).round(5).tolist()
        [4.0, 3.0]
    """
    A, R = as_matrix(A), _checked_gram(gram, A.shape[1])
    T = householder(A).T if A.shape[0] > A.shape[1] else A
    energies = eigvalsh(_output_gram(T, R))
    return _roots(energies, _unseen(energies, T))


def _checked_gram(gram: Matrix | None, n: int) -> NDArray[Any] | None:
    if gram is None:
        return None
    R = linalg.to_numpy(gram)
    if R.shape != (n, n):
        raise ValueError(
            f"`gram` must have shape ({n}, {n}) for a matrix of {n} columns, got {R.shape}."
        )
    if R.dtype.kind != "f":
        raise TypeError(f"`gram` must hold floating-point numbers, got {R.dtype}.")
    linalg.check_finite(R, "gram")
    if (np.diagonal(R) < 0).any():
        raise ValueError(
            "`gram` must be positive semidefinite, but its diagonal has negative entries. "
            "Pass X.T @ X of the inputs X, one per row."
        )
    return R


def _output_gram(T: Float32, R: NDArray[Any] | None) -> Float64:
    """Return ``T R T^T`` in float64, widening one block of columns of T at a time."""
    if R is None:
        return linalg.gram(T.T)
    k, n = T.shape
    width, H = max(k, isqrt(arrays.BLOCK)), np.zeros((k, k))
    for columns in blocks(n, width):
        TR = np.zeros((k, columns.stop - columns.start))
        for inner in blocks(n, width):
            TR += T[:, inner].astype(np.float64) @ R[inner, columns].astype(np.float64)
        H += TR @ T[:, columns].T.astype(np.float64)
    return H


def _unseen(energies: Float64, T: Float32) -> NDArray[np.bool_]:
    """Tell which energies are zero up to rounding."""
    noise = max(T.shape) * float(np.finfo(np.float64).eps)
    unseen: NDArray[np.bool_] = energies <= noise * energies.max(initial=0.0)
    return unseen


def _by_plain_energy(N: Float64, T: Float32) -> Float64:
    """Return the same subspace, its directions in the order of ``||N^T T||``."""
    H = np.zeros((N.shape[1], N.shape[1]))
    for columns in blocks(T.shape[1], T.shape[0]):
        block = N.T @ T[:, columns].astype(np.float64)
        H += block @ block.T
    return N @ linalg.eigh(H)[1]


def _roots(energies: Float64, unseen: NDArray[np.bool_]) -> Float64:
    return np.sqrt(np.where(unseen, 0.0, energies))
