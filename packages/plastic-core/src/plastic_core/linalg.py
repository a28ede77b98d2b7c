"""Where and how factorisations run: NumPy's LAPACK, thin, finite going in and coming out.

MLX factorises on the CPU only, always returns square factors, and on Linux an infinity ends the
process. NumPy reads the memory of an MLX array without a copy; its LAPACK always works in float64,
so what reaches it is square and small: a QR in float32 comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_core.householder import HouseholderQR, householder_qr

Matrix = NDArray[Any] | mx.array
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Array = TypeVar("Array", bound=NDArray[Any])

BLOCK = 2**21  # entries of one float64 block: 16 MiB


def to_numpy(array: Matrix) -> NDArray[Any]:
    """The same numbers as a NumPy array; bfloat16, which NumPy lacks, becomes float32 (exact)."""
    if isinstance(array, mx.array):
        if array.dtype == mx.bfloat16:
            array = array.astype(mx.float32, stream=mx.cpu)
        mx.eval(array)  # NumPy would hide that it failed
    return np.asarray(array)


def check_finite(array: NDArray[Any], name: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        ValueError: Naming the number of entries that are not finite and the first of them.
    """
    width = array.size // max(1, len(array))
    if all(np.isfinite(array[rows]).all() for rows in blocks(len(array), width)):
        return
    wrong = ~np.isfinite(array)
    first = tuple(int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
    raise ValueError(
        f"`{name}` must be finite in {array.dtype}, but {wrong.sum()} of its {array.size} entries "
        f"are not, the first at {first}. Repair or exclude it first."
    )


def as_matrix(A: Matrix, name: str = "A") -> Float32:
    """Return ``A`` as a finite float32 matrix, sharing its memory where it already is one.

    Args:
        A: Matrix of shape ``(m, n)``, NumPy or MLX, of float16, bfloat16, float32 or float64.
        name: What error messages call it.

    Returns:
        Array of shape ``(m, n)``. It may be the caller's memory: do not write into it.

    Raises:
        TypeError: If the entries are not real floating-point numbers.
        ValueError: If ``A`` has not two axes, or an entry is NaN, infinite or beyond float32.
    """
    return _as_float32(A, name, axes=2)


def as_vector(s: Matrix, name: str = "s") -> Float32:
    """Return ``s`` as a finite float32 vector, under the terms of `as_matrix`."""
    return _as_float32(s, name, axes=1)


def _as_float32(array: Matrix, name: str, axes: int) -> Float32:
    array = to_numpy(array)
    if array.ndim != axes:
        kind = {1: "vector", 2: "matrix"}[axes]
        raise ValueError(f"`{name}` must be a {kind}, got an array of shape {array.shape}.")
    if array.dtype.kind != "f":
        raise TypeError(
            f"`{name}` must hold floating-point numbers, got {array.dtype}. "
            "Dequantise or cast it first."
        )
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32, copy=False)
    check_finite(converted, name)
    return converted


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices that cover ``range(count)``, each of at most 16 MiB in float64 at that width."""
    step = max(1, BLOCK // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _checked(result: Array) -> Array:
    if not np.isfinite(result).all():
        raise ValueError(
            f"The factorisation overflows {result.dtype}. Scale the matrix down first."
        )
    return result


def thin_svd(A: Matrix) -> tuple[Float32, Float32, Float32]:
    """Thin singular value decomposition.

    Args:
        A: Matrix of shape ``(m, n)``; ``k = min(m, n)``.

    Returns:
        ``U (m, k)`` with orthonormal columns, ``S (k,)`` non-negative and non-increasing, and
        ``Vh (k, n)`` with orthonormal rows, float32, such that ``A = U @ diag(S) @ Vh``.

    Raises:
        ValueError: If ``A`` is not a finite matrix or a singular value is beyond float32.
    """
    A = as_matrix(A)
    if A.shape[0] < A.shape[1]:
        V, S, Uh = thin_svd(A.T)
        return Uh.T, S, V.T
    factored = householder(A)
    with np.errstate(over="ignore"):
        U, S, Vh = np.linalg.svd(factored.T)
    return factored.times(U), _checked(S), Vh


def singular_values(A: Matrix) -> Float64:
    """The ``min(m, n)`` singular values of ``A``, float64, non-negative and non-increasing."""
    A = as_matrix(A)
    T = householder(A.T if A.shape[0] < A.shape[1] else A).T
    S: Float64 = np.linalg.svd(T.astype(np.float64), compute_uv=False)
    return _checked(S)


def householder(A: Matrix) -> HouseholderQR:
    """Thin QR ``A = Q @ T`` that keeps ``Q (m, k)`` as reflectors, for products ``Q @ P``."""
    with np.errstate(over="ignore", invalid="ignore"):
        factored = householder_qr(as_matrix(A))
    _checked(factored.T)
    return factored


def qr(A: Matrix) -> tuple[Float32, Float32]:
    """Thin QR in float32: ``Q (m, k)`` with orthonormal columns, ``T (k, n)`` upper triangular."""
    factored = householder(A)
    return factored.times(np.eye(len(factored.T), dtype=np.float32)), factored.T


def eigh(A: NDArray[Any]) -> tuple[Float64, Float64]:
    """Eigenvalues and eigenvectors of a symmetric matrix, in float64, largest eigenvalue first.

    Args:
        A: Symmetric matrix of shape ``(n, n)``; only its lower triangle is read.

    Returns:
        The eigenvalues ``(n,)``, non-increasing, and ``V (n, n)`` with orthonormal columns, such
        that ``A = V @ diag(eigenvalues) @ V.T``.

    Raises:
        ValueError: If ``A`` is not finite.
    """
    check_finite(A, "A")
    values, vectors = np.linalg.eigh(A.astype(np.float64, copy=False))
    return _checked(values)[::-1], _checked(vectors)[:, ::-1]


def eigvalsh(A: NDArray[Any]) -> Float64:
    """The eigenvalues of `eigh` alone."""
    check_finite(A, "A")
    values: Float64 = np.linalg.eigvalsh(A.astype(np.float64, copy=False))
    return _checked(values)[::-1]


def gram(X: Matrix) -> Float64:
    """Return ``X.T @ X``, accumulated in float64 over blocks of rows.

    Args:
        X: Matrix of shape ``(tokens, n)``: one input of a layer per row.

    Returns:
        Symmetric positive semidefinite matrix of shape ``(n, n)``, float64.
    """
    X = as_matrix(X, "X")
    total = np.zeros((X.shape[1], X.shape[1]))
    for rows in blocks(*X.shape):
        block = X[rows].astype(np.float64)
        total += block.T @ block
    return total


def multiply(A: Float32, x: Float64) -> Float64:
    """Return ``A @ x`` for a vector, in float64, widening one block of rows at a time."""
    y = np.empty(len(A))
    for rows in blocks(*A.shape):
        y[rows] = A[rows].astype(np.float64) @ x
    return y


def frobenius_norm(A: Matrix) -> float:
    """Square root of the sum of squares, in float64: no float32 matrix over- or underflows it."""
    A = as_matrix(A)
    total = 0.0
    for rows in blocks(*A.shape):
        block = A[rows].astype(np.float64)
        total += float(np.vdot(block, block))
    return float(np.sqrt(total))


def spectral_norm(A: Matrix, *, tolerance: float = 1e-2, key_seed: int = 0) -> float:
    """The largest singular value of ``A``, without a factorisation.

    Args:
        A: Matrix of shape ``(m, n)``.
        tolerance: See `operator_norm`.
        key_seed: Seed of the random starting vector.

    Returns:
        A lower bound of the norm, 0.0 for a zero or empty matrix.
    """
    A = as_matrix(A)

    def energy(x: Float64) -> Float64:
        return multiply(A.T, multiply(A, x))

    return operator_norm(energy, A.shape[1], tolerance=tolerance, key_seed=key_seed)


def operator_norm(
    energy: Callable[[Float64], Float64],
    size: int,
    *,
    tolerance: float = 1e-2,
    key_seed: int = 0,
) -> float:
    """The largest singular value of an operator D that is known through ``x -> D.T @ (D @ x)``.

    Lanczos iteration with full re-orthogonalisation (Golub and Van Loan, *Matrix Computations*,
    4th ed., section 10.1), started at random. A small residual only tells that some eigenvalue is
    near; so the number of steps comes from a bound that needs no gap between the eigenvalues.

    Args:
        energy: The product ``D.T @ (D @ x)`` for float64 vectors ``x`` of shape ``(size,)``.
        size: Number of columns of D.
        tolerance: Largest relative error of the result, in (0, 1).
        key_seed: Seed of the random starting vector.

    Returns:
        A lower bound of the norm, within ``tolerance`` of it with probability 0.999 over the
        starting vector, whatever the spectrum.

    Note:
        At most ``size`` steps, and at most 43 at the default tolerance for ``size`` = 10,000.

    References:
        Kuczynski and Wozniakowski, *Estimating the largest eigenvalue by the power and Lanczos
        algorithms with a random start*, SIAM J. Matrix Anal. Appl. 13(4), 1992, theorem 4.2: after
        k steps the relative error of the eigenvalue exceeds e with a probability of at most
        1.648 sqrt(size) exp(-sqrt(e) (2 k - 1)). https://doi.org/10.1137/0613066
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` must be between 0 and 1, got {tolerance}.")
    direction = np.random.default_rng(key_seed).standard_normal(size)
    basis, images = np.empty((size, 0)), np.empty((size, 0))
    for _ in range(_lanczos_steps(size, tolerance)):
        rounding = size * np.finfo(np.float64).eps * np.linalg.norm(direction)
        for _ in range(2):  # once leaves what rounding put back
            direction = direction - basis @ (basis.T @ direction)
        length = np.linalg.norm(direction)
        if length <= rounding:  # all that the start can reach has been seen
            break
        basis = np.column_stack([basis, direction / length])
        direction = energy(basis[:, -1])
        images = np.column_stack([images, direction])
    energies = np.linalg.eigvalsh(basis.T @ images)
    return float(np.sqrt(max(0.0, energies[-1]))) if energies.size else 0.0


def _lanczos_steps(size: int, tolerance: float, failure: float = 1e-3) -> int:
    """Steps after which the largest eigenvalue has a relative error below ``2 tolerance``."""
    if size == 0:
        return 0
    exponent = math.log(1.648 * math.sqrt(size) / failure)
    return min(size, math.ceil((exponent / math.sqrt(2 * tolerance) + 1) / 2))
