"""Several matrices, one budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plastic_select.budget import break_even_rank
from plastic_select.check import as_shape, as_spectrum, check_target
from plastic_select.choose import (
    RankChoice,
    check_strategy,
    choose_rank_from_spectrum,
    describe,
    rounded_up,
)
from plastic_select.spectrum import (
    cumulative_energy,
    energy_shares,
    rank_at_energy,
    stable_rank_of_spectrum,
)

Spectra = list[NDArray[np.float64]]
Ranks = NDArray[np.int64]


def choose_ranks(
    spectra: Sequence[ArrayLike],
    shapes: Sequence[tuple[int, int]],
    target_compression: float,
    strategy: str,
    *,
    floor: int = 1,
    ceilings: Sequence[int] | None = None,
) -> list[RankChoice]:
    r"""Choose the ranks of several matrices under one budget of parameters.

    The factors of all of them hold :math:`\sum_i (m_i + n_i) r_i \le (1 - \text{target}) \sum_i
    m_i n_i` parameters. No rank exceeds the break-even :math:`\lfloor m n / (m + n) \rfloor`,
    where the factors would be larger than the dense matrix.

    - ``"stable"``: one multiple of every stable rank, the largest that meets the budget
      (heuristic).
    - ``"energy"``: one retained energy for every matrix, the largest that meets the budget.
    - ``"activation"``: the same with spectra of ``A R^{1/2}``: every matrix keeps the same fraction
      of its output energy. Heuristic; on two trained models it had less divergence at equal bytes
      than equal ranks, and than giving each component out by its share of output energy per
      parameter.
    - ``"theorem"``, ``"threshold"``: each matrix by itself, as ``choose_rank`` does. Should the
      floor then exceed the budget, components are given out, up to these ranks, by their share
      of the matrix's energy per parameter.

    Args:
        spectra: The ``min(m, n)`` singular values of each matrix, non-increasing.
        shapes: Shape ``(m, n)`` of each matrix.
        target_compression: Fraction of all dense parameters that the factors remove, in [0, 1).
        strategy: One of ``STRATEGIES``.
        floor: The least rank of every matrix (of those whose ceiling is lower, that).
        ceilings: The greatest rank of each matrix, at least 1, where it is lower than the
            break-even: of matrices, say, that are stored in fewer bytes than ``m n`` parameters.

    Returns:
        One choice per matrix, in the order given; the same for the same arguments.

    Raises:
        TypeError: If values are not real numbers.
        ValueError: If an argument is out of range, or the floors alone exceed the budget.

    Note:
        Sorts all singular values once at most, or bisects 64 times over the matrices: under two
        seconds for 300 matrices of 4096 values.
    """
    checked = _check(spectra, shapes, strategy, floor)
    check_target(target_compression)
    m, n = np.array([as_shape(shape) for shape in shapes], dtype=np.int64).T
    # A count: the product may be rounded to just below it.
    parameters = math.floor((1 - target_compression) * float(np.sum(m * n)) + 1e-6)
    budget = _Budget(checked, m + n, parameters)
    most = np.array([break_even_rank(shape) for shape in shapes], dtype=np.int64)
    if ceilings is not None:
        most = np.minimum(most, np.maximum(1, np.array(ceilings, dtype=np.int64)))
    least = np.minimum(floor, most)
    if not budget.holds(least):
        raise ValueError(
            f"`floor` = {floor} in each of {len(shapes)} matrices needs {budget.cost @ least} "
            f"parameters, and `target_compression` = {target_compression} leaves "
            f"{budget.parameters}. Lower either."
        )
    if strategy == "stable":
        ranks, why = _common_multiple(budget, least, most)
    elif strategy in ("energy", "activation"):
        ranks, why = _common_energy(budget, least, most)
    else:
        alone = [
            choose_rank_from_spectrum(s, shape, target_compression, strategy)
            for s, shape in zip(checked, shapes, strict=True)
        ]
        ranks, why = _by_itself(budget, alone, least, most)
    return [
        describe(s, int(rank), strategy, reason)
        for s, rank, reason in zip(checked, ranks, why, strict=True)
    ]


@dataclass(frozen=True)
class _Budget:
    spectra: Spectra
    cost: Ranks  # parameters per component
    parameters: int

    def holds(self, ranks: Ranks) -> bool:
        return bool(self.cost @ ranks <= self.parameters)

    def largest(self, ranks_at: Callable[[float], Ranks], high: float) -> tuple[float, Ranks]:
        """The largest x in [0, high] whose ranks fit; the ranks grow with x and fit at 0."""
        if self.holds(best := ranks_at(high)):
            return high, best
        low = 0.0
        for _ in range(64):
            middle = (low + high) / 2
            low, high = (middle, high) if self.holds(ranks_at(middle)) else (low, middle)
        return low, ranks_at(low)

    def fill(self, ranks: Ranks, most: Ranks) -> Ranks:
        """Add components to ``ranks``, largest share of energy per parameter first."""
        ranks, left = ranks.copy(), self.parameters - int(self.cost @ ranks)
        shares = [
            energy_shares(s)[low:high] / cost
            for s, cost, low, high in zip(self.spectra, self.cost, ranks, most, strict=True)
        ]
        owner = np.repeat(np.arange(len(ranks)), most - ranks)
        share = np.concatenate(shares)
        order = np.argsort(-share, kind="stable")
        owner = owner[order][share[order] > 0]
        while owner.size:
            # Once a component does not fit, neither does a later one of the same matrix.
            owner = owner[self.cost[owner] <= left]
            fits = int(np.searchsorted(np.cumsum(self.cost[owner]), left, side="right"))
            ranks += np.bincount(owner[:fits], minlength=len(ranks))
            left -= int(self.cost[owner[:fits]].sum())
            owner = owner[fits:]
        return ranks


def _common_multiple(budget: _Budget, least: Ranks, most: Ranks) -> tuple[Ranks, list[str]]:
    stable = np.array([stable_rank_of_spectrum(s) for s in budget.spectra])

    def ranks_at(multiple: float) -> Ranks:
        return np.clip(rounded_up(multiple * stable), least, most).astype(np.int64)

    enough = float(np.max(most / np.maximum(stable, 1.0)))
    multiple, ranks = budget.largest(ranks_at, enough)
    return ranks, [
        f"{multiple:.4g} x stable rank {x:.4g}, the common multiple, within [{low}, {high}]"
        for x, low, high in zip(stable, least, most, strict=True)
    ]


def _common_energy(budget: _Budget, least: Ranks, most: Ranks) -> tuple[Ranks, list[str]]:
    cumulative = [cumulative_energy(s) for s in budget.spectra]

    def ranks_at(energy: float) -> Ranks:
        return np.clip([rank_at_energy(c, energy) for c in cumulative], least, most)

    energy, ranks = budget.largest(ranks_at, 1.0)
    return ranks, [
        f"{energy:.6g} of the energy, the common fraction, within [{low}, {high}]"
        for low, high in zip(least, most, strict=True)
    ]


def _by_itself(
    budget: _Budget, alone: Sequence[RankChoice], least: Ranks, most: Ranks
) -> tuple[Ranks, list[str]]:
    ranks = np.clip([choice.rank for choice in alone], least, most)
    why = [choice.why for choice in alone]
    return (ranks if budget.holds(ranks) else budget.fill(least, ranks)), why


def _check(
    spectra: Sequence[ArrayLike], shapes: Sequence[tuple[int, int]], strategy: str, floor: int
) -> Spectra:
    check_strategy(strategy)
    if floor < 1:
        raise ValueError(f"`floor` must be at least 1, got {floor}.")
    if not spectra or len(spectra) != len(shapes):
        raise ValueError(
            "`spectra` and `shapes` must have the same number of entries, at least 1, "
            f"got {len(spectra)} and {len(shapes)}."
        )
    checked = []
    for i, (s, shape) in enumerate(zip(spectra, shapes, strict=True)):
        try:
            checked.append(as_spectrum(s, shape=as_shape(shape)))
        except (TypeError, ValueError) as error:
            error.add_note(f"while reading matrix {i} of {len(spectra)}")
            raise
    return checked
