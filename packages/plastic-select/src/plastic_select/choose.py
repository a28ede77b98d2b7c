"""One matrix, one rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from plastic_select.budget import budget_rank
from plastic_select.check import as_shape, as_spectrum, checked_matrix
from plastic_select.rules import NEED_GRAM, RULES, as_rule
from plastic_select.rules.rule import RankChoice, Rule
from plastic_select.spectrum import singular_values, weighted_singular_values

if TYPE_CHECKING:
    import mlx.core as mx

STRATEGIES = tuple(RULES)  # the names that may stand for a rule


def choose_rank(
    A: ArrayLike | mx.array,
    target_compression: float,
    strategy: str | Rule = "stable",
    *,
    gram: ArrayLike | mx.array | None = None,
) -> RankChoice:
    """Choose the rank of a matrix within a budget of parameters.

    No rule exceeds ``budget_rank``. What a rule does below it, and the numbers that it has, is
    said by ``plastic_select.rules``: ``Stable``, ``Theorem``, ``Energy``, ``Threshold`` and
    ``Activation``. A name stands for the rule without numbers of your own.

    Args:
        A: Matrix of shape ``(m, n)``: anything that NumPy reads, or an MLX array.
        target_compression: Fraction of the ``m n`` dense parameters that storing the factors
            removes, in [0, 1). It is not an energy.
        strategy: A name of ``STRATEGIES``, or a rule such as ``Energy(0.9)``.
        gram: Input Gram ``E[x x^T]``, shape ``(n, n)``; for ``"activation"``, which needs it.

    Returns:
        The choice, with a rank from 1 to ``budget_rank((m, n), target_compression)``.

    Raises:
        TypeError: If the entries are not real numbers.
        ValueError: If ``A`` is not a finite matrix, the strategy is unknown,
            ``target_compression`` is out of range, or ``gram`` is missing or of no use.

    Note:
        The cost is that of ``singular_values``; with a spectrum at hand use
        ``choose_rank_from_spectrum``.

    Examples:
        >>> import numpy as np
        >>> A = np.diag([4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1])
        >>> choose_rank(A, 0.3).rank
        2
        >>> from plastic_select.rules import Energy
        >>> choice = choose_rank(A, 0.0, Energy(0.9))
        >>> choice.rank, choice.why
        (3, 'rank 3 retains 0.9 of the energy; budget rank 4')
    """
    rule = as_rule(strategy)
    if (gram is not None) != rule.needs_gram:
        needing = " or ".join(map(repr, NEED_GRAM))
        raise ValueError(
            f"strategy {needing} needs `gram`, the input Gram E[x x^T] of shape (n, n); "
            f"no other strategy takes it. Got strategy {rule.name!r} "
            f"{'without' if gram is None else 'with'} `gram`."
        )
    A = checked_matrix(A)
    s = singular_values(A) if gram is None else weighted_singular_values(A, gram)
    m, n = A.shape
    return choose_rank_from_spectrum(s, (m, n), target_compression, rule)


def choose_rank_from_spectrum(
    singular_values: ArrayLike,
    shape: tuple[int, int],
    target_compression: float,
    strategy: str | Rule,
) -> RankChoice:
    """Choose as :func:`choose_rank` does, from a spectrum.

    Args:
        singular_values: The ``min(m, n)`` singular values, non-increasing; those of
            ``A R^{1/2}`` for ``"activation"``.
        shape: Shape ``(m, n)`` of the matrix.
        target_compression: Fraction of the dense parameters removed, in [0, 1).
        strategy: A name of ``STRATEGIES``, or a rule.

    Returns:
        The choice, with a rank from 1 to ``budget_rank(shape, target_compression)``.

    Raises:
        TypeError: If the values are not real numbers.
        ValueError: If they are not the spectrum of such a matrix, the strategy is unknown, or
            ``target_compression`` is out of range.

    Examples:
        >>> choice = choose_rank_from_spectrum([3.0, 0.1, 0.1, 0.1], (4, 8), 0.25, "theorem")
        >>> choice.rank, choice.why
        (1, 'a gap that stands out; budget rank 2')
    """
    rule = as_rule(strategy)
    s = as_spectrum(singular_values, shape=as_shape(shape))
    return rule.choose(s, shape, budget_rank(shape, target_compression))
