"""A rank read from Pop's identity: cut where the fewest directions are left undecided.

Everything here is a heuristic. The identity is exact algebra; that a clear cut is a good rank is
a rule of thumb, and on a spectrum without a clear cut the answer is the budget rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from plastic_select.budget import budget_rank
from plastic_select.check import as_shape, as_spectrum
from plastic_select.rules.rule import Rule, Spectrum
from plastic_select.spectrum import EPS, singular_values

if TYPE_CHECKING:
    import mlx.core as mx

UNDECIDED = 0.01  # an eigenvalue h of H is undecided when h and 1 - h are both above this
STANDS_OUT = 2.0  # how many times wider than all that follows a gap must be


@dataclass(frozen=True)
class Theorem(Rule):
    """The clearest cut within the budget, or the budget rank: see ``theorem_guided_rank``.

    Heuristic. What may follow the last value that is known is taken to be as large: no gap is
    seen that is not there.

    Examples:
        >>> from plastic_select import choose_rank_from_spectrum
        >>> s = [1.0, 0.9, 0.8] + [0.1] * 17
        >>> choice = choose_rank_from_spectrum(s, (20, 20), 0.2, Theorem())
        >>> choice.rank, choice.why
        (3, 'a gap that stands out; budget rank 8')
    """

    name = "theorem"

    def wanted(self, spectrum: Spectrum, shape: tuple[int, int], budget: int) -> tuple[int, str]:
        """Return the clearest cut of at most ``budget``."""
        followed = np.append(spectrum, spectrum[-1])
        rank = _clearest_cut(followed, budget, rounding=max(shape) * EPS)
        standing = "a gap that stands out"
        return rank, standing if rank < budget else "no gap stands out below the budget"


def theorem_guided_rank(A: ArrayLike | mx.array, target_compression: float) -> int:
    r"""Return the rank at the clearest cut of ``A`` within a budget (heuristic).

    With :math:`\lambda_i = (\sigma_i / \sigma_1)^2`, the budget rank :math:`r_b` and
    :math:`\tau = (\lambda_{r_b} \lambda_{r_b+1})^{1/2}`, the matrix
    :math:`H = G (G + \tau I)^{-1}`, :math:`G = A^T A / \sigma_1^2`, has the eigenvalues
    :math:`h_i = \lambda_i / (\lambda_i + \tau)`: near 1 for what the budget clearly keeps, near 0
    for what it clearly drops. Pop's identity (see ``rank_identity``) for f = x and g = x - 1
    counts the others,

    .. math:: \operatorname{rank} H - (n - \operatorname{rank}(H - I))
              = \operatorname{rank}(H^2 - H),

    so every defensible rank lies in the bracket :math:`[n - \operatorname{rank}(H - I),
    \operatorname{rank} H]`. Numerical ranks count what is above 0.01.

    Of the cuts k in the bracket with :math:`1 \le k \le r_b` take the one with the widest gap
    :math:`\sigma_k / \sigma_{k+1}`. It is the answer if it stands out, that is, if

    - it is at least twice as wide as the whole fall :math:`\sigma_{k+1} / \sigma_{r_b+1}` from
      there to the budget: what follows is flat beside it, like a floor of noise; and
    - what is given up, :math:`\sum_{k < i \le r_b} \sigma_i^2`, is less than what is kept,
      :math:`\sum_{i \le k} \sigma_i^2`.

    Otherwise the answer is :math:`r_b`. Trained weight matrices mostly have no such gap.

    Args:
        A: Matrix of shape ``(m, n)``, of any shape.
        target_compression: Fraction of the ``m n`` dense parameters that the factors remove, in
            [0, 1).

    Returns:
        A rank from 1 to ``budget_rank((m, n), target_compression)``: k for a projector of rank
        k plus small noise, if k is within the budget; 1 for a zero matrix.

    Raises:
        TypeError: If the entries are not real numbers.
        ValueError: If ``A`` is not a finite matrix or ``target_compression`` is out of range.

    Examples:
        >>> import numpy as np
        >>> clear = np.diag([1.0, 0.9, 0.8] + [0.01] * 17)
        >>> smooth = np.diag(1.0 / np.arange(1, 21))
        >>> theorem_guided_rank(clear, 0.2), theorem_guided_rank(smooth, 0.2)
        (3, 8)

    References:
        The identity: V. Pop, arXiv 2010.00634; Pop and Negrescu, Mathematics 12(3), 360, 2024,
        https://doi.org/10.3390/math12030360. The rule and its two constants: heuristic.
    """
    s = singular_values(A)
    m, n = np.shape(A)
    return theorem_rank(s, (m, n), target_compression)


def theorem_rank(
    singular_values: ArrayLike, shape: tuple[int, int], target_compression: float
) -> int:
    """Return what :func:`theorem_guided_rank` returns, from a spectrum.

    Args:
        singular_values: The ``min(m, n)`` singular values, non-increasing.
        shape: Shape ``(m, n)`` of the matrix.
        target_compression: Fraction of the dense parameters removed, in [0, 1).

    Returns:
        A rank from 1 to ``budget_rank(shape, target_compression)``.

    Raises:
        TypeError: If the values are not real numbers.
        ValueError: If they are not the spectrum of such a matrix, or ``target_compression`` is
            out of range.

    Examples:
        >>> theorem_rank([1.0, 0.9, 0.8] + [0.01] * 17, (20, 20), 0.2)
        3
    """
    s = as_spectrum(singular_values, shape=as_shape(shape))
    return Theorem().choose(s, shape, budget_rank(shape, target_compression)).rank


def rank_bracket(singular_values: ArrayLike, rank: int) -> tuple[int, int]:
    """Return the least and the greatest rank that a cut at ``rank`` leaves defensible (heuristic).

    With H as in :func:`theorem_guided_rank` these are the number of eigenvalues of H of at least
    0.99 and the number above 0.01. The difference is the numerical rank of ``H^2 - H``.

    Args:
        singular_values: A spectrum; values below ``2^-52`` times the first count as that much.
        rank: Where to cut, from 1 to the number of values less one.

    Returns:
        ``(lowest, highest)`` with ``lowest <= rank <= highest``.

    Raises:
        TypeError: If the values are not real numbers.
        ValueError: If they are not a spectrum, are all zero, or ``rank`` is out of range.

    Examples:
        >>> rank_bracket([1.0, 1.0, 0.001, 0.001], 2), rank_bracket([1.0, 0.8, 0.6, 0.4], 2)
        ((2, 2), (0, 4))
    """
    s = as_spectrum(singular_values)
    if not 1 <= rank < s.size:
        raise ValueError(
            f"`rank` must be between 1 and {s.size - 1} for {s.size} singular values, got {rank}."
        )
    if s[0] == 0:
        raise ValueError("`singular_values` must not all be zero: no cut of them is defensible.")
    s = np.maximum(s / s[0], EPS)
    # lambda_i and tau, both divided by lambda_rank so that nothing underflows.
    lambda_i, tau = np.square(s / s[rank - 1]), s[rank] / s[rank - 1]
    h = lambda_i / (lambda_i + tau)
    return int(np.count_nonzero(h >= 1 - UNDECIDED)), int(np.count_nonzero(h > UNDECIDED))


def _clearest_cut(s: Spectrum, budget: int, rounding: float) -> int:
    """Return the cut at or below ``budget`` of at least ``budget + 1`` values."""
    if s[0] == 0:
        return 1
    s = np.maximum(s / s[0], rounding)  # what is below is rounding: no gaps in there
    lowest = max(1, rank_bracket(s, budget)[0])
    gaps = s[lowest - 1 : budget] / s[lowest : budget + 1]
    k = lowest + int(np.argmax(gaps))
    return k if _stands_out(s, k, budget) else budget


def _stands_out(s: Spectrum, k: int, budget: int) -> bool:
    gap, fall = s[k - 1] / s[k], s[k] / s[budget]
    kept, given_up = np.sum(np.square(s[:k])), np.sum(np.square(s[k:budget]))
    return bool(gap >= STANDS_OUT * fall and kept > given_up)
