"""Measures of rank that a spectrum gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plastic_select.check import as_spectrum, as_square, check_retained_energy, checked_matrix
from plastic_select.linalg import dense_singular_values, symmetric_eigen

if TYPE_CHECKING:
    import mlx.core as mx

EPS = float(np.finfo(np.float64).eps)


def singular_values(A: ArrayLike | mx.array) -> NDArray[np.float64]:
    """Return the singular values of ``A``, computed in float64.

    Args:
        A: Matrix of shape ``(m, n)``: anything that NumPy reads, or an MLX array of any floating
            dtype. It is not modified.

    Returns:
        ``min(m, n)`` values, float64, non-negative and non-increasing.

    Raises:
        TypeError: If the entries are not real numbers.
        ValueError: If ``A`` is not a matrix, is empty, is not finite (the message names how many
            entries and the first), or is so large that a singular value overflows.

    Note:
        NumPy's LAPACK on the CPU; about ``m n min(m, n)`` operations and two float64 copies.

    Examples:
        >>> singular_values([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]])
        array([4., 3.])
    """
    return _singular_values(checked_matrix(A))


def weighted_singular_values(
    A: ArrayLike | mx.array, gram: ArrayLike | mx.array
) -> NDArray[np.float64]:
    r"""Return the singular values of :math:`A R^{1/2}`: the spectrum that inputs see.

    For inputs x with :math:`R = E[x x^T]` the sum of the squares is the mean energy of the
    output, :math:`E \|A x\|^2 = \|A R^{1/2}\|_F^2`, and dropping value i loses
    :math:`\sigma_i^2` of it.

    Args:
        A: Matrix of shape ``(m, n)``.
        gram: R, shape ``(n, n)``, symmetric and positive semidefinite; it may be singular.

    Returns:
        ``min(m, n)`` values, float64, non-negative and non-increasing.

    Raises:
        TypeError: If the entries are not real numbers.
        ValueError: If ``A`` or ``gram`` is not finite, the shapes do not fit, or ``gram`` is not
            symmetric and positive semidefinite.

    Examples:
        >>> import numpy as np
        >>> W = np.diag([3.0, 2.0, 1.0])
        >>> R = np.diag([0.0, 1.0, 25.0])  # the first input is always zero, the last one is large
        >>> weighted_singular_values(W, R)
        array([5., 2., 0.])

    References:
        Wang et al., *SVD-LLM*, arXiv 2403.07378 (with a Cholesky factor for the
        square root; the singular values are the same).
    """
    A, R = checked_matrix(A), as_square(gram, "gram")
    if len(R) != A.shape[1]:
        raise ValueError(
            f"`gram` must have shape {(A.shape[1],) * 2} for a matrix of shape {A.shape}, "
            f"got {R.shape}."
        )
    slack = 1e-4 * np.abs(R).max()  # Grams are often accumulated in float32
    w, V = symmetric_eigen((R + R.T) / 2)
    if np.abs(R - R.T).max() > slack or w[0] < -slack:
        raise ValueError("`gram` must be symmetric and positive semidefinite, as E[x x^T] is.")
    return _singular_values((A @ V) * np.sqrt(np.maximum(w, 0.0)))


def stable_rank(A: ArrayLike | mx.array, eps: float = 1e-6) -> float:
    r"""Return the stable rank :math:`\|A\|_F^2 / \|A\|_2^2`.

    It lies between 1 and the rank of ``A``, does not change when ``A`` is scaled, transposed or
    multiplied by an orthogonal matrix, and small singular values hardly move it.

    Args:
        A: Matrix of shape ``(m, n)``.
        eps: Singular values of at most ``eps`` times the largest are left out; in [0, 1).

    Returns:
        A float of at least 1; 0.0 for a zero matrix.

    Raises:
        TypeError: If the entries are not real numbers.
        ValueError: If ``A`` is not a finite matrix or ``eps`` is out of range.

    Examples:
        >>> round(stable_rank([[2.0, 0.0], [0.0, 1.0]]), 6)
        1.25

    References:
        Rudelson and Vershynin, *Sampling from large matrices*, J. ACM 54(4), 2007,
        https://doi.org/10.1145/1255443.1255449 ("numerical rank").
    """
    if not 0 <= eps < 1:
        raise ValueError(f"`eps` must be at least 0 and below 1, got {eps}.")
    return stable_rank_of_spectrum(singular_values(A), eps=eps)


def stable_rank_of_spectrum(singular_values: ArrayLike, *, eps: float = 1e-6) -> float:
    """Return what :func:`stable_rank` returns, from a spectrum.

    Args:
        singular_values: A spectrum, non-negative and non-increasing.
        eps: The threshold of :func:`stable_rank`.

    Raises:
        TypeError: If the values are not real numbers.
        ValueError: If they are not a spectrum.

    Examples:
        >>> stable_rank_of_spectrum([2.0, 1.0])
        1.25
    """
    s = as_spectrum(singular_values)
    if s[0] == 0:
        return 0.0
    relative = s / s[0]
    return float(np.sum(np.square(relative[relative > eps])))


def effective_rank(A: ArrayLike | mx.array) -> float:
    r"""Return the effective rank :math:`\exp(-\sum_i p_i \log p_i)`, :math:`p_i = \sigma_i /
    \sum_j \sigma_j`.

    It lies between 1 and the rank of ``A``, and is k for k equal singular values.

    Args:
        A: Matrix of shape ``(m, n)``.

    Returns:
        A float of at least 1; 0.0 for a zero matrix.

    Raises:
        TypeError: If the entries are not real numbers.
        ValueError: If ``A`` is not a finite matrix.

    Examples:
        >>> import numpy as np
        >>> round(effective_rank(np.eye(7)[:, :4]), 6)
        4.0

    References:
        Roy and Vetterli, *The effective rank: a measure of effective dimensionality*,
        EUSIPCO 2007.
    """
    return effective_rank_of_spectrum(singular_values(A))


def effective_rank_of_spectrum(singular_values: ArrayLike) -> float:
    """Return what :func:`effective_rank` returns, from a spectrum.

    Args:
        singular_values: A spectrum, non-negative and non-increasing.

    Raises:
        TypeError: If the values are not real numbers.
        ValueError: If they are not a spectrum.

    Examples:
        >>> round(effective_rank_of_spectrum([3.0, 1.0]), 3)
        1.755
    """
    s = as_spectrum(singular_values)
    if s[0] == 0:
        return 0.0
    p = s / s[0]
    p = p[p > 0] / p.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def energy_rank(singular_values: ArrayLike, retained_energy: float) -> int:
    r"""Return the least r with :math:`\sum_{i \le r} \sigma_i^2 \ge` ``retained_energy``
    :math:`\cdot \sum_i \sigma_i^2`, to within rounding.

    Args:
        singular_values: A spectrum, non-negative and non-increasing.
        retained_energy: Fraction of the energy to keep, in (0, 1].

    Returns:
        A rank from 1 to the number of values; 0 for a zero spectrum, which keeps all of nothing.

    Raises:
        TypeError: If the values are not real numbers.
        ValueError: If they are not a spectrum, or ``retained_energy`` is out of range.

    Examples:
        >>> energy_rank([3.0, 1.0, 0.0], 0.9), energy_rank([3.0, 1.0, 0.0], 1.0)
        (1, 2)
    """
    s = as_spectrum(singular_values)
    check_retained_energy(retained_energy)
    return rank_at_energy(cumulative_energy(s), retained_energy)


def energy_shares(s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each value's fraction of the energy; zeros for a zero spectrum."""
    if s[0] == 0:
        return np.zeros_like(s)
    energy: NDArray[np.float64] = np.square(s / s[0])
    energy /= energy.sum()
    return energy


def cumulative_energy(s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the energy retained by ranks 1, 2, ..., as fractions; zeros for a zero spectrum."""
    cumulative: NDArray[np.float64] = np.cumsum(energy_shares(s))
    return cumulative


def rank_at_energy(cumulative: NDArray[np.float64], retained_energy: float) -> int:
    """Return the least rank whose cumulative energy reaches ``retained_energy``."""
    if cumulative[-1] == 0:
        return 0
    # The sums are rounded: 9 of 10 must count as 0.9.
    reached = retained_energy * float(cumulative[-1]) * (1 - EPS * (8 + cumulative.size))
    return int(np.searchsorted(cumulative, reached)) + 1


def _singular_values(A: NDArray[np.float64]) -> NDArray[np.float64]:
    s = dense_singular_values(A)
    if not np.isfinite(s).all():
        raise ValueError("`A` is too large: a singular value overflows float64. Scale it down.")
    return s
