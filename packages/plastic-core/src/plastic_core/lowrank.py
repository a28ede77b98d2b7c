"""The best approximation of a given rank, and what it costs."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_core.linalg import (
    Float32,
    Float64,
    Matrix,
    as_matrix,
    blocks,
    frobenius_norm,
    multiply,
    operator_norm,
    spectral_norm,
    thin_svd,
)


class Factors(NamedTuple):
    """``A = U @ diag(S) @ Vh``.

    Attributes:
        U: Shape ``(m, r)``.
        S: Shape ``(r,)``.
        Vh: Shape ``(r, n)``.
    """

    U: mx.array
    S: mx.array
    Vh: mx.array

    @property
    def rank(self) -> int:
        """The number of components."""
        return self.S.shape[0]

    def dense(self) -> mx.array:
        """The product ``U @ diag(S) @ Vh`` of shape ``(m, n)``, in the dtype of the factors."""
        return (self.U * self.S) @ self.Vh


def factorized_lowrank(A: Matrix, rank: int) -> Factors:
    r"""Return the best rank-``rank`` approximation of ``A``, as factors.

    Of all matrices of rank at most :math:`r`, the truncated singular value decomposition is closest
    to :math:`A` in the spectral and in the Frobenius norm, and what it discards is known exactly:

    .. math::

        \|A - A_r\|_2 = \sigma_{r+1}, \qquad \|A - A_r\|_F^2 = \sum_{i > r} \sigma_i^2.

    Args:
        A: Matrix of shape ``(m, n)``, NumPy or MLX, any floating dtype. It is not modified.
        rank: Number of singular values to keep, from 1 to ``min(m, n)``.

    Returns:
        Float32 factors of shapes ``(m, rank)``, ``(rank,)`` and ``(rank, n)``. ``S`` is
        non-negative and non-increasing; the columns of ``U`` and the rows of ``Vh`` are
        orthonormal.

    Raises:
        TypeError: If ``A`` does not hold floating-point numbers.
        ValueError: If ``A`` is not a finite matrix or ``rank`` is out of range.

    Note:
        One thin factorisation on the CPU, O(m n min(m, n)) operations.

    Example:
        >>> U, S, Vh = factorized_lowrank(mx.diag(mx.array([3.0, 2.0, 1.0])), rank=2)
        >>> S.tolist()
        [3.0, 2.0]

    References:
        Eckart and Young, *The approximation of one matrix by another of lower rank*,
        Psychometrika 1(3), 1936, https://doi.org/10.1007/BF02288367.
    """
    U, S, Vh = _truncated_svd(A, rank)
    return Factors(mx.array(U), mx.array(S), mx.array(Vh))


def svd_lowrank(A: Matrix, rank: int) -> mx.array:
    """Return the best rank-``rank`` approximation of ``A`` as a dense matrix.

    Args:
        A: Matrix of shape ``(m, n)``, NumPy or MLX, any floating dtype.
        rank: Number of singular values to keep, from 1 to ``min(m, n)``.

    Returns:
        Matrix of shape ``(m, n)`` in the dtype of ``A``; NumPy's float64 becomes float32.

    Raises:
        TypeError: If ``A`` does not hold floating-point numbers.
        ValueError: If ``A`` is not a finite matrix, ``rank`` is out of range, or the approximation
            overflows the dtype of ``A``.
    """
    U, S, Vh = _truncated_svd(A, rank)
    dtype = _mlx_dtype(A)
    dense = mx.array((U * S) @ Vh).astype(dtype, stream=mx.cpu)
    if not bool(mx.isfinite(dense, stream=mx.cpu).all(stream=mx.cpu).item()):
        raise ValueError(
            f"The rank-{rank} approximation overflows {dtype}. Cast `A` to float32 first."
        )
    return dense


def _mlx_dtype(A: Matrix) -> mx.Dtype:
    if isinstance(A, mx.array):
        return A.dtype
    return mx.float16 if A.dtype == np.float16 else mx.float32


def _truncated_svd(A: Matrix, rank: int) -> tuple[Float32, Float32, Float32]:
    A = as_matrix(A)
    rank, limit = operator.index(rank), min(A.shape)
    if not 1 <= rank <= limit:
        raise ValueError(
            f"`rank` must be between 1 and min(m, n) = {limit} for a matrix of shape {A.shape}, "
            f"got {rank}."
        )
    U, S, Vh = thin_svd(A)
    return U[:, :rank], S[:rank], Vh[:rank]


class Certificate(NamedTuple):
    """How far stored factors are from the matrix they stand for.

    Attributes:
        relative_error: Frobenius norm of the difference over the Frobenius norm of the matrix.
        spectral_error: The same in the spectral norm, to a few percent (see `certify`).
    """

    relative_error: float
    spectral_error: float


def certify(A: Matrix, U: Matrix, Vh: Matrix) -> Certificate:
    """Measure ``A - U @ Vh`` in float64, for the factors as they are stored.

    The errors are those of the cast or dequantised numbers that are handed in, not of the ideal
    factors they came from.

    Args:
        A: Matrix of shape ``(m, n)``.
        U: Matrix of shape ``(m, r)``, any floating dtype; ``r = 0`` is allowed.
        Vh: Matrix of shape ``(r, n)``, the singular values folded into it or into ``U``.

    Returns:
        Both relative errors; 0.0 where a zero matrix is met exactly, infinity where it is not. The
        Frobenius error is exact up to rounding; the spectral one is a quotient of two estimates
        that hold within one percent each with probability 0.999 (`linalg.operator_norm`).

    Raises:
        TypeError: If an argument does not hold floating-point numbers.
        ValueError: If an argument is not a finite matrix or the shapes do not fit together.

    Note:
        O(m n r) operations; of the difference only one block of 16 MiB exists at any time.
    """
    A, U, Vh = as_matrix(A), as_matrix(U, "U"), as_matrix(Vh, "Vh")
    (m, n), r = A.shape, U.shape[1]
    if U.shape != (m, r) or Vh.shape != (r, n):
        raise ValueError(
            f"`U` and `Vh` must have shapes ({m}, r) and (r, {n}) for a matrix of shape {A.shape}, "
            f"got {U.shape} and {Vh.shape}."
        )

    def difference_energy(x: Float64) -> Float64:
        y = multiply(A, x) - multiply(U, multiply(Vh, x))
        return multiply(A.T, y) - multiply(Vh.T, multiply(U.T, y))

    return Certificate(
        _ratio(_difference_norm(A, U, Vh), frobenius_norm(A)),
        _ratio(operator_norm(difference_energy, n), spectral_norm(A)),
    )


def _difference_norm(A: Float32, U: Float32, Vh: Float32) -> float:
    total = 0.0
    for columns in blocks(A.shape[1], max(U.shape)):
        right = Vh[:, columns].astype(np.float64)
        for rows in blocks(A.shape[0], max(Vh.shape)):
            block: NDArray[Any] = A[rows, columns] - U[rows].astype(np.float64) @ right
            total += float(np.vdot(block, block))
    return float(np.sqrt(total))


def _ratio(error: float, norm: float) -> float:
    if norm == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / norm
