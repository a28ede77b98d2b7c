"""Factors brought to normal form: orthonormal sides, and ``S`` really the spectrum."""

import numpy as np

from plastic_core import linalg
from plastic_core.factors.factors import Factors
from plastic_core.linalg import Float32, Float64
from plastic_core.linalg.arrays import scaled
from plastic_core.linalg.lapack import checked

Arrays = tuple[Float32, Float32, Float32]


def as_arrays(factors: Factors) -> Arrays:
    """Return finite float32 NumPy arrays of ``factors``; ``ValueError`` names the one that is not.

    They may be the factors' own memory: do not write into them.

    Examples:
        >>> import mlx.core as mx
        >>> factors = Factors(mx.ones((2, 1)), mx.array([3.0]), mx.ones((1, 2)))
        >>> [a.shape for a in as_arrays(factors)]
        [(2, 1), (1,), (1, 2)]
    """
    U, S, Vh = factors
    return linalg.as_matrix(U, "U"), linalg.as_vector(S, "S"), linalg.as_matrix(Vh, "Vh")


def balance(U: Float32, S: Float32, Vh: Float32) -> Arrays:
    r"""Return the thin SVD of ``U diag(S) Vh`` without forming it.

    .. math::

        U = Q_u R_u, \quad V_h^T = Q_v R_v, \quad R_u \, \mathrm{diag}(S) \, R_v^T = P \Sigma T^T
        \quad\Rightarrow\quad U \, \mathrm{diag}(S) \, V_h = (Q_u P) \, \Sigma \, (Q_v T)^T.

    Args:
        U: Shape ``(m, r)``, any columns.
        S: Shape ``(r,)``, any signs and order.
        Vh: Shape ``(r, n)``, any rows; ``r <= min(m, n)``.

    Returns:
        Left vectors ``(m, r)`` with orthonormal columns, singular values ``(r,)``, non-negative
        and non-increasing, right vectors ``(r, n)`` with orthonormal rows. Costs
        ``O((m + n + r) r^2)``.

    Raises:
        ValueError: If a factor is not finite, or a singular value is beyond float32.

    Examples:
        >>> _, S, _ = balance(2 * np.eye(2, dtype=np.float32), np.float32([1, -3]), np.eye(2))
        >>> S.round(5).tolist()
        [6.0, 2.0]
    """
    Qu, Ru = linalg.qr(U)
    Qv, Rv = linalg.qr(Vh.T)
    (Ru, of_u), (S, of_s), (Rv, of_v) = (scaled(A) for A in (Ru, S, Rv))
    P, spectrum, Th = linalg.thin_svd((Ru * S) @ Rv.T)
    with np.errstate(over="ignore"):
        spectrum = checked(np.ldexp(spectrum, of_u + of_s + of_v))
    return Qu @ P, spectrum, Th @ Qv.T


def product_spectrum(U: Float32, S: Float32, Vh: Float32) -> Float64:
    """Return the ``r`` singular values of ``U diag(S) Vh``, float64, non-increasing.

    Through Gram matrices of order r in float64, without a QR: a value is right to about 1e-8 of
    the largest, where float32 ends.

    Args:
        U: Shape ``(m, r)``, finite.
        S: Shape ``(r,)``, finite.
        Vh: Shape ``(r, n)``, finite.

    Examples:
        >>> product_spectrum(2 * np.eye(2, dtype=np.float32), np.float32([1, -3]), np.eye(2))
        array([6., 2.])
    """
    left, s, right = U.astype(np.float64), S.astype(np.float64), Vh.astype(np.float64)
    energies, Q = linalg.eigh(left.T @ left)
    root = (Q * np.sqrt(np.maximum(energies, 0.0))).T * s
    squares, _ = linalg.eigh(root @ (right @ right.T) @ root.T)
    return np.sqrt(np.maximum(squares, 0.0))


def right_map(old: Float32, new: Float32) -> Float32:
    """Return the ``(r, r)`` matrix ``X`` with ``old @ X`` nearest to ``new``.

    Least squares by the pseudo-inverse: exact when the columns of ``old``, shape ``(m, r)``, are
    linearly independent and span those of ``new``. Through the Gram matrix in float64, whose
    rounding stays below that of float32 for every singular value that counts: one is left out
    below ``max(m, r)`` float32 epsilons of the largest.

    Examples:
        >>> old = np.float32([[1, 0], [0, 2], [0, 0]])
        >>> (right_map(old, np.float32([[3], [4], [0]])).round(5) + 0.0).tolist()
        [[3.0], [2.0]]
    """
    wide = old.astype(np.float64)
    energies, Q = linalg.eigh(wide.T @ wide)
    least = max(old.shape) * float(np.finfo(np.float32).eps)
    safe = energies > float(energies.max(initial=0.0)) * least**2
    Q = Q[:, safe]
    X: Float64 = (Q / energies[safe]) @ (Q.T @ (wide.T @ new))
    return X.astype(np.float32)


def factor_norm(U: Float32, S: Float32, Vh: Float32) -> float:
    r"""Return :math:`\|U \, \mathrm{diag}(S) \, V_h\|_F` in float64 without forming the product.

    The factors need not be orthonormal: the square is
    :math:`\sum_{ij} s_i s_j (u_i^T u_j)(v_i^T v_j)`.

    Examples:
        >>> factor_norm(np.eye(2, dtype=np.float32), np.float32([3, 4]), np.eye(2))
        5.0
    """
    left, s, right = U.astype(np.float64), S.astype(np.float64), Vh.astype(np.float64)
    squared = s @ ((left.T @ left) * (right @ right.T)) @ s
    return float(np.sqrt(np.maximum(squared, 0.0)))
