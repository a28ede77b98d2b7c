"""The bytes and the predicted cost of every way of storing one matrix, before any measurement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from plastic_core import Operator, difference, predicted_cost, priced_corrections
from plastic_core.files import MLX_DTYPES
from plastic_core.rounding import expected_costs, expected_error
from plastic_runtime import LossGrams

from plastic_export.plan.choices import (
    Choices,
    backbones_of,
    corrected_backbones,
    offered_ranks,
    plain_offer,
    ranked_offer,
)
from plastic_export.plan.gram_uses import GramRoots, combined_grams, gram_roots, is_free
from plastic_export.plan.offers import Candidate, Offer
from plastic_export.plan.storing import rounded


def expected_offers(
    weight: NDArray[np.float32], m: Candidate, uses: tuple[LossGrams, ...], choices: Choices
) -> list[Offer]:
    """Return the backbones that are offered for one matrix, at their `expected_costs`.

    Nothing is rounded with feedback, so a group of alike matrices is to say how far off it is. Of
    several uses, the combined Grams are taken. Where all uses are free (`is_free`), every offer
    costs nothing.

    Args:
        weight: The matrix.
        m: What it is, or is one of.
        uses: The Grams of its uses: see `Uses`.
        choices: What to offer.

    Examples:
        >>> from plastic_runtime import GramFile
        >>> m = read_plan("plan.json").matrices[0].matrix
        >>> with GramFile("plan.grams.npz") as grams, open_checkpoint("SRC") as checkpoint:
        ...     weight, uses = checkpoint.matrix(m.name), (grams[m.name.removesuffix(".weight")],)
        ...     offers = expected_offers(weight, m, uses, Choices(bits=(2, 8), group_sizes=(64,)))
        >>> offers[0].nbytes < offers[1].nbytes, offers[0].cost > offers[1].cost
        (True, True)
    """
    backbones = backbones_of(m, choices)
    if all(map(is_free, uses)):
        return [plain_offer(m, bits, size, 0.0) for bits, size in backbones]
    R, C = gram_roots(combined_grams(uses))
    dtype = MLX_DTYPES[m.dtype]
    costs = expected_costs(weight, backbones, inputs=R, outputs=C, dtype=dtype).tolist()
    return [plain_offer(m, *pair, cost) for pair, cost in zip(backbones, costs, strict=True)]


def rounded_offers(
    weight: NDArray[np.float32], m: Candidate, uses: tuple[LossGrams, ...], choices: Choices
) -> list[Offer]:
    """Return the backbones that are offered for one matrix, each rounded and its cost predicted.

    See `expected_offers`, which takes a hundredth of the time.

    Args:
        weight: The matrix.
        m: What it is, or is one of.
        uses: The Grams of its uses. A use that is free (`is_free`) adds no cost.
        choices: What to offer.

    Examples:
        >>> from plastic_runtime import GramFile
        >>> m = read_plan("plan.json").matrices[0].matrix
        >>> with GramFile("plan.grams.npz") as grams, open_checkpoint("SRC") as checkpoint:
        ...     weight, uses = checkpoint.matrix(m.name), (grams[m.name.removesuffix(".weight")],)
        ...     offers = rounded_offers(weight, m, uses, Choices((2, 8), group_sizes=(64,)))
        >>> offers[0].nbytes < offers[-1].nbytes, offers[0].cost > offers[-1].cost
        (True, True)
    """
    rounding = WeightRounding.of(weight, m, uses)
    return [
        plain_offer(m, bits, size, rounding.cost(rounding.error(bits, size)))
        for bits, size in backbones_of(m, choices)
    ]


def corrected_offers(
    weight: NDArray[np.float32], m: Candidate, uses: tuple[LossGrams, ...], choices: Choices
) -> list[Offer]:
    """Return the corrections that are offered for one matrix, beside backbones and bare.

    Each is stored in full and its cost predicted, as `rounded_offers` does.

    Args:
        weight: The matrix.
        m: What it is, or is one of.
        uses: The Grams of its only use.
        choices: What to offer.

    Examples:
        >>> from plastic_runtime import GramFile
        >>> m = read_plan("plan.json").matrices[0].matrix
        >>> with GramFile("plan.grams.npz") as grams, open_checkpoint("SRC") as checkpoint:
        ...     weight, uses = checkpoint.matrix(m.name), (grams[m.name.removesuffix(".weight")],)
        ...     offers = corrected_offers(weight, m, uses, Choices(factor_bits=(8,), ranks=(2, 4)))
        >>> offers[0].rank, offers[1].rank, offers[0].cost > offers[1].cost
        (2, 4, True)
    """
    if not choices.factor_bits:
        return []
    rounding, offers = WeightRounding.of(weight, m, uses), list[Offer]()
    for bits, size in corrected_backbones(m, choices):
        base = plain_offer(m, bits, size, 0.0)
        offers += _corrections(rounding.error(bits, size), base, m, rounding.shared, choices)
    if choices.bare:
        offers += _corrections(weight, Offer.nothing(), m, rounding.shared, choices)
    return offers if rounding.costly else [offer._replace(cost=0.0) for offer in offers]


class WeightRounding:
    """The rounding of one matrix, and what the errors are predicted to cost.

    Attributes:
        shared: The Grams that it is rounded under, those of all its uses together.
        costly: Those of every use in which a change costs anything.
    """

    def __init__(
        self, weight: NDArray[np.float32], m: Candidate, shared: GramRoots, costly: list[GramRoots]
    ) -> None:
        self._weight, self._m, self.shared, self.costly = weight, m, shared, costly

    @classmethod
    def of(
        cls, weight: NDArray[np.float32], m: Candidate, uses: tuple[LossGrams, ...]
    ) -> WeightRounding:
        """Take a matrix and the Grams of its uses; each is factored once."""
        roots = [gram_roots(use) for use in uses]
        shared = roots[0] if len(uses) == 1 else gram_roots(combined_grams(uses))
        costly = [pair for pair, use in zip(roots, uses, strict=True) if not is_free(use)]
        return cls(weight, m, shared, costly)

    def error(self, bits: int, group_size: int) -> Operator:
        """Return the weight less what is stored of it."""
        stands_for = rounded(self._weight, bits, self.shared, self._m, group_size=group_size)
        return difference(self._weight, stands_for)

    def expected_error(self, bits: int, group_size: int) -> NDArray[np.float32]:
        """Return about what rounding in full leaves of the weight."""
        R, C = self.shared
        dtype = MLX_DTYPES[self._m.dtype]
        return expected_error(
            self._weight, bits, inputs=R, outputs=C, group_size=group_size, dtype=dtype
        )

    def cost(self, E: Operator | NDArray[np.float32]) -> float:
        """Return what an error is predicted to cost in all uses."""
        return sum((predicted_cost(E, inputs=R, outputs=C) for R, C in self.costly), 0.0)


def _corrections(
    E: Operator | NDArray[np.float32], base: Offer, m: Candidate, roots: GramRoots, choices: Choices
) -> list[Offer]:
    """Make up for what is left of a weight, ``E``, by corrections of many ranks as stored."""
    offered = {bits: offered_ranks(m, base, bits, choices) for bits in choices.factor_bits}
    most = {bits: ranks[-1] for bits, ranks in offered.items() if ranks}
    R, C = roots
    costs = priced_corrections(E, most, inputs=R, outputs=C, dtype=MLX_DTYPES[m.dtype])
    return [
        ranked_offer(base, m, rank, bits, float(costs[bits][rank]))
        for bits in most
        for rank in offered[bits]
    ]


def pareto(offers: Sequence[Offer]) -> list[Offer]:
    """Return, by increasing bytes, those that cost less than all that take no more.

    Examples:
        >>> cheap, poor, good = Offer(2, 100, 0.3), Offer(3, 150, 0.4), Offer(4, 200, 0.1)
        >>> pareto([good, poor, cheap]) == [cheap, good]
        True
    """
    kept = list[Offer]()
    for offer in sorted(offers, key=lambda o: (o.nbytes, o.cost)):
        if not kept or offer.cost < kept[-1].cost:
            kept.append(offer)
    return kept
