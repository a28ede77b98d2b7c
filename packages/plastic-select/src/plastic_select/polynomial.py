"""V. Pop's rank identity for polynomials of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plastic_select.check import as_square
from plastic_select.linalg import dense_singular_values, symmetric_eigenvalues
from plastic_select.spectrum import EPS, singular_values

if TYPE_CHECKING:
    import mlx.core as mx

Coefficients = Sequence[SupportsFloat]


@dataclass(frozen=True)
class RankIdentity:
    """The two sides of ``rank f(M) + rank g(M) = rank gcd(M) + rank lcm(M)``.

    Attributes:
        rank_f: Numerical rank of f(M).
        rank_g: Numerical rank of g(M).
        rank_gcd: Numerical rank of d(M), d the greatest common divisor of f and g.
        rank_lcm: Numerical rank of m(M), m their least common multiple.
        defect: ``rank_f + rank_g - rank_gcd - rank_lcm``: 0 in exact arithmetic.
        holds: Whether the defect is within the tolerance asked for.

    Examples:
        >>> identity = rank_identity([[1.0, 0.0], [0.0, 0.0]], [1, 0], [1, -1])
        >>> identity.rank_f + identity.rank_g == identity.rank_gcd + identity.rank_lcm
        True
    """

    rank_f: int
    rank_g: int
    rank_gcd: int
    rank_lcm: int
    defect: int
    holds: bool


def horner(coefficients: Coefficients, M: ArrayLike | mx.array) -> NDArray[np.float64]:
    r"""Return the polynomial :math:`p(M) = c_k M^k + \dots + c_1 M + c_0 I` by Horner's rule.

    Args:
        coefficients: ``c_k, ..., c_1, c_0``, highest power first, as in ``numpy.polyval``.
        M: Square matrix of shape ``(n, n)``.

    Returns:
        Matrix of shape ``(n, n)``, float64.

    Raises:
        TypeError: If the entries are not real numbers.
        ValueError: If there are no coefficients, or ``M`` is not square and finite.

    Note:
        ``k`` products of matrices: about ``2 k n^3`` operations.

    Examples:
        >>> horner([1, 0, -1], [[2.0, 1.0], [0.0, 3.0]])  # M^2 - I
        array([[3., 5.],
               [0., 8.]])
    """
    c = _as_floats(coefficients, "coefficients")
    M = as_square(M)
    identity = np.eye(len(M))
    p = c[0] * identity
    for c_i in c[1:]:
        p = p @ M + c_i * identity
    return p


def gcd_and_lcm(
    f: Coefficients, g: Coefficients
) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
    """Return the greatest common divisor and the least common multiple of two polynomials.

    The arithmetic is exact, over the rationals; a float counts as the binary fraction that it is.

    Args:
        f: Coefficients, highest power first.
        g: Coefficients, highest power first.

    Returns:
        The coefficients of both, highest power first, leading coefficient 1 (``(0,)`` for the
        zero polynomial).

    Raises:
        ValueError: If ``f`` or ``g`` has no coefficients, or one that is not finite.

    Note:
        sympy is imported on the first call (about half a second).

    Examples:
        >>> gcd, lcm = gcd_and_lcm([1, 0, -1], [1, -1])  # x^2 - 1 and x - 1
        >>> [int(c) for c in gcd], [int(c) for c in lcm]
        ([1, -1], [1, 0, -1])
    """
    import sympy

    def poly(coefficients: Coefficients, name: str) -> Any:
        exact = _as_fractions(coefficients, name)
        rationals = [sympy.Rational(c.numerator, c.denominator) for c in exact]
        return sympy.Poly(rationals, sympy.Symbol("x"), domain=sympy.QQ)

    def monic(p: Any) -> tuple[Fraction, ...]:
        coefficients = p.all_coeffs() if p.is_zero else p.monic().all_coeffs()
        return tuple(Fraction(int(c.p), int(c.q)) for c in coefficients)

    p, q = poly(f, "f"), poly(g, "g")
    # sympy divides by the zero polynomial to find the lcm of zero and zero.
    return monic(p.gcd(q)), monic(p if p.is_zero else p.lcm(q))


def rank_identity(
    M: ArrayLike | mx.array, f: Coefficients, g: Coefficients, *, tolerance: float = 0
) -> RankIdentity:
    r"""Evaluate Pop's identity on a matrix.

    For every square matrix M and polynomials f and g, with d their greatest common divisor and
    m their least common multiple,

    .. math:: \operatorname{rank} f(M) + \operatorname{rank} g(M)
              = \operatorname{rank} d(M) + \operatorname{rank} m(M).

    This is exact algebra. In floating point a rank counts the singular values of p(M) above what
    rounding M by :math:`\varepsilon = 4 n \cdot 2^{-52} \|M\|_2` can cause,
    :math:`\varepsilon \sum_i i |c_i| \|M\|_2^{i-1}`; a singular value close to that line can be
    counted on one side of the identity and not on the other, and then the defect is not 0.

    Args:
        M: Square matrix of shape ``(n, n)``.
        f: Coefficients, highest power first.
        g: Coefficients, highest power first.
        tolerance: The largest absolute defect, in units of rank, that still ``holds``.

    Returns:
        The four numerical ranks, the defect and whether the identity holds.

    Raises:
        TypeError: If the entries are not real numbers.
        ValueError: If ``M`` is not square and finite, or a polynomial overflows on it.

    Note:
        A symmetric ``M`` costs one eigenvalue problem, any other Horner's rule and a spectrum for
        each of the four polynomials.

    Examples:
        >>> projector = [[1.0, 0.0], [0.0, 0.0]]
        >>> rank_identity(projector, [1, 0], [1, -1])  # f = x, g = x - 1: rank M + rank (I - M) = n
        RankIdentity(rank_f=1, rank_g=1, rank_gcd=2, rank_lcm=0, defect=0, holds=True)

    References:
        V. Pop, arXiv 2010.00634; Pop and Negrescu, Mathematics 12(3), 360, 2024,
        https://doi.org/10.3390/math12030360.
    """
    M = as_square(M)
    d, m = gcd_and_lcm(f, g)
    eigenvalues = symmetric_eigenvalues(M) if np.array_equal(M, M.T) else None
    rank_f, rank_g, rank_gcd, rank_lcm = (
        _numerical_rank(_as_floats(p, "f, g"), M, eigenvalues) for p in (f, g, d, m)
    )
    defect = rank_f + rank_g - rank_gcd - rank_lcm
    return RankIdentity(rank_f, rank_g, rank_gcd, rank_lcm, defect, abs(defect) <= tolerance)


def _numerical_rank(
    c: list[float], M: NDArray[np.float64], eigenvalues: NDArray[np.floating] | None
) -> int:
    with np.errstate(over="ignore", invalid="ignore"):
        if eigenvalues is None:
            norm, p = float(dense_singular_values(M)[0]), horner(c, M)
        else:
            norm, p = float(np.abs(eigenvalues).max()), np.polyval(c, eigenvalues)
        rounding = _rounding(c, norm, len(M))
    if not (np.isfinite(p).all() and np.isfinite(rounding)):
        raise ValueError("`M` is too large: a polynomial overflows on it. Scale it down.")
    values = singular_values(p) if eigenvalues is None else np.abs(p)
    return int(np.count_nonzero(values > rounding))


def _rounding(c: list[float], norm: float, n: int) -> float:
    powers = np.arange(len(c) - 1, -1, -1)
    return 4 * n * EPS * float(np.sum(powers * np.abs(c) * norm**powers))


def _as_fractions(coefficients: Coefficients, name: str) -> list[Fraction]:
    try:
        exact = [Fraction(c if isinstance(c, Rational) else float(c)) for c in coefficients]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`{name}` must hold finite real coefficients: {error}.") from error
    if not exact:
        raise ValueError(f"`{name}` must hold at least one coefficient, highest power first.")
    return exact


def _as_floats(coefficients: Coefficients, name: str) -> list[float]:
    return [float(c) for c in _as_fractions(coefficients, name)]
