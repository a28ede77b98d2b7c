"""One matrix, one rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plastic_select.budget import budget_rank
from plastic_select.check import as_shape, as_spectrum, check_retained_energy, checked_matrix
from plastic_select.spectrum import (
    energy_rank,
    energy_shares,
    singular_values,
    stable_rank_of_spectrum,
    weighted_singular_values,
)
from plastic_select.theorem import theorem_rank
from plastic_select.threshold import optimal_threshold_rank

if TYPE_CHECKING:
    import mlx.core as mx

STRATEGIES = ("activation", "energy", "stable", "theorem", "threshold")


@dataclass(frozen=True)
class RankChoice:
    """A rank and what it costs.

    Attributes:
        rank: From 1 to ``min(m, n)``.
        retained_energy: Fraction of the sum of the squared singular values that the best
            approximation of that rank keeps, in [0, 1]; 1.0 for a zero matrix.
        relative_error: Its relative Frobenius error, ``sqrt(1 - retained_energy)``.
        strategy: The strategy that chose. Under ``"activation"`` both figures are about the
            output, ``A R^{1/2}``, and not about the weights.
        why: The reason, in one line.
    """

    rank: int
    retained_energy: float
    relative_error: float
    strategy: str
    why: str


def choose_rank(
    A: ArrayLike | mx.array,
    target_compression: float,
    strategy: str = "stable",
    *,
    gram: ArrayLike | mx.array | None = None,
    retained_energy: float | None = None,
    multiple: float = 1.0,
) -> RankChoice:
    """Choose the rank of a matrix within a budget of parameters.

    No strategy exceeds ``budget_rank``; what they do below it:

    - ``"stable"``: ``multiple`` times the stable rank, rounded up beyond a hundredth, so that
      a projector with a little noise keeps its rank (heuristic).
    - ``"theorem"``: see ``theorem_guided_rank`` (heuristic).
    - ``"energy"``: the least rank that keeps ``retained_energy``; without one, the budget rank.
    - ``"threshold"``: see ``optimal_threshold_rank``.
    - ``"activation"``: the budget rank. For one matrix the Gram changes the reported error, and
      which subspace is best; it changes ranks where several matrices share a budget
      (``choose_ranks``).

    Args:
        A: Matrix of shape ``(m, n)``: anything that NumPy reads, or an MLX array.
        target_compression: Fraction of the ``m n`` dense parameters that storing the factors
            removes, in [0, 1). It is not an energy.
        strategy: One of ``STRATEGIES``.
        gram: Input Gram ``E[x x^T]``, shape ``(n, n)``; for ``"activation"``, which needs it.
        retained_energy: Fraction in (0, 1]; for ``"energy"``.
        multiple: Positive factor of the stable rank; for ``"stable"``.

    Returns:
        The choice, with a rank from 1 to ``budget_rank((m, n), target_compression)``.

    Raises:
        TypeError: If the entries are not real numbers.
        ValueError: If ``A`` is not a finite matrix, the strategy is unknown, an argument is out
            of range, missing, or belongs to another strategy.

    Note:
        The cost is that of ``singular_values``; with a spectrum at hand use
        ``choose_rank_from_spectrum``.
    """
    check_strategy(strategy)
    if (gram is None) == (strategy == "activation"):
        raise ValueError(
            "strategy 'activation' needs `gram`, the input Gram E[x x^T] of shape (n, n); "
            f"no other strategy takes it. Got strategy {strategy!r} "
            f"{'without' if gram is None else 'with'} `gram`."
        )
    A = checked_matrix(A)
    s = singular_values(A) if gram is None else weighted_singular_values(A, gram)
    m, n = A.shape
    return choose_rank_from_spectrum(
        s,
        (m, n),
        target_compression,
        strategy,
        retained_energy=retained_energy,
        multiple=multiple,
    )


def choose_rank_from_spectrum(
    singular_values: ArrayLike,
    shape: tuple[int, int],
    target_compression: float,
    strategy: str,
    *,
    retained_energy: float | None = None,
    multiple: float = 1.0,
) -> RankChoice:
    """Choose as :func:`choose_rank` does, from a spectrum.

    Args:
        singular_values: The ``min(m, n)`` singular values, non-increasing; those of
            ``A R^{1/2}`` for ``"activation"``.
        shape: Shape ``(m, n)`` of the matrix.
        target_compression: Fraction of the dense parameters removed, in [0, 1).
        strategy: One of ``STRATEGIES``.
        retained_energy: Fraction in (0, 1]; for ``"energy"``.
        multiple: Positive factor of the stable rank; for ``"stable"``.

    Returns:
        The choice, with a rank from 1 to ``budget_rank(shape, target_compression)``.

    Raises:
        TypeError: If the values are not real numbers.
        ValueError: If they are not the spectrum of such a matrix, the strategy is unknown, or an
            argument is out of range or belongs to another strategy.
    """
    check_strategy(strategy)
    _check_options(strategy, retained_energy, multiple)
    s = as_spectrum(singular_values, shape=as_shape(shape))
    budget = budget_rank(shape, target_compression)
    if strategy == "stable":
        stable = stable_rank_of_spectrum(s)
        wanted = int(rounded_up(min(multiple * stable, s.size)))
        what = f"{multiple:.4g} x stable rank {stable:.4g}, rounded up"
    elif strategy == "theorem":
        wanted = theorem_rank(s, shape, target_compression)
        what = "a gap that stands out" if wanted < budget else "no gap stands out below the budget"
    elif strategy == "threshold":
        wanted = optimal_threshold_rank(s, shape)
        what = f"{wanted} singular values above the optimal hard threshold"
    elif strategy == "energy" and retained_energy is not None:
        wanted = energy_rank(s, retained_energy)
        what = f"rank {wanted} retains {retained_energy:.4g} of the energy"
    else:
        wanted, what = budget, "all that the budget permits"
    why = f"{what}; budget rank {budget}"
    return describe(s, max(1, min(wanted, budget)), strategy, why)


def rounded_up(rank: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """The least integer of at least ``rank - 0.01``: noise on a flat spectrum adds no component."""
    return np.ceil(np.asarray(rank) - 0.01)


def check_strategy(strategy: str) -> None:
    """Refuse a name that is not in ``STRATEGIES``."""
    if strategy not in STRATEGIES:
        names = ", ".join(map(repr, STRATEGIES))
        raise ValueError(f"`strategy` must be one of {names}, got {strategy!r}.")


def describe(s: NDArray[np.float64], rank: int, strategy: str, why: str) -> RankChoice:
    """Return the choice of ``rank`` for a checked spectrum, with its energy and error."""
    # Summed from the small end, so that a tiny error is not lost in 1 - retained_energy.
    lost = float(min(np.sum(energy_shares(s)[rank:][::-1]), 1.0))
    return RankChoice(rank, 1.0 - lost, math.sqrt(lost), strategy, why)


def _check_options(strategy: str, retained_energy: float | None, multiple: float) -> None:
    if retained_energy is not None:
        check_retained_energy(retained_energy)
        if strategy != "energy":
            raise ValueError(f"`retained_energy` is for strategy 'energy', not {strategy!r}.")
    if not 0 < multiple < math.inf:
        raise ValueError(f"`multiple` must be positive and finite, got {multiple}.")
    if multiple != 1.0 and strategy != "stable":
        raise ValueError(f"`multiple` is for strategy 'stable', not {strategy!r}.")
