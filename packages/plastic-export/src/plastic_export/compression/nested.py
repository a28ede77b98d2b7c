"""One plan for a range of sizes: backbones whose ranks serve all of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from plastic_core.linalg import Float64
from plastic_select import Option, allocate

from plastic_export.plan.budgets import Budget
from plastic_export.plan.offers import BitsPlan, Offer, Offered, totals_of

SIZES = 5
"""Sizes of a range at which a plan is judged, both ends among them."""
ROUNDS = 20
"""How often the prices of bytes are adjusted (heuristic: later rounds gained under a percent)."""


class SizeRange(NamedTuple):
    """A range of sizes in bits per weight.

    Examples:
        >>> SizeRange(3.0, 4.0).sizes
        (3.0, 3.25, 3.5, 3.75, 4.0)
        >>> str(SizeRange(3.0, 3.5))
        '3-3.5'
    """

    low: float
    high: float

    @property
    def sizes(self) -> tuple[float, ...]:
        """Return the sizes at which a plan for it is judged."""
        return tuple(np.linspace(self.low, self.high, SIZES).tolist())

    def __str__(self) -> str:
        """Write it as it is asked for."""
        return f"{self.low:g}-{self.high:g}"


class _Family(NamedTuple):
    """The offers of a matrix that one folder can be dialled to: of one backbone and packing."""

    offers: tuple[Offer, ...]
    nbytes: Float64
    costs: Float64

    @classmethod
    def of(cls, offers: Sequence[Offer]) -> _Family:
        nbytes, costs = ([o.nbytes for o in offers], [o.cost for o in offers])
        return cls(tuple(offers), np.array(nbytes, np.float64), np.array(costs))

    def options(self) -> list[Option]:
        return [Option(o.nbytes, o.cost, o) for o in self.offers]

    def at(self, price: float) -> tuple[float, float]:
        """Return the least sum of cost and priced bytes, and the bytes of that offer."""
        sums = self.costs + price * self.nbytes
        best = int(sums.argmin())
        return float(sums[best]), float(self.nbytes[best])


def nested_plan(matrices: Sequence[Offered], sizes: SizeRange) -> BitsPlan:
    """Choose backbones and most ranks so that every size of a range is good.

    Every matrix that can have a backbone has one, with the bits that it has in the plan for one of
    the sizes alone. What is made small is the mean over the sizes of the cost over that of the plan
    for that size. With a price of bytes for each size, what a family of offers is worth follows
    from it alone, and `allocate` takes those that fit into the smallest size; the prices are
    adjusted until the bytes are those of the sizes.

    Args:
        matrices: What each matrix offers.
        sizes: The range.

    Returns:
        The plan of the largest size; its folder can be dialled to all others.

    Raises:
        ValueError: If the range is empty, or the smallest size out of reach.

    Examples:
        >>> matrices = read_plan("plan.json").matrices  # of mixed bits: nothing can be dialled
        >>> plan = nested_plan(matrices, SizeRange(4.5, 6.0))
        >>> plan.asked, plan.bits_per_weight <= 6
        ('4.5-6', True)
    """
    if not (math.isfinite(sizes.high) and 0 < sizes.low < sizes.high):
        raise ValueError(f"`range` must be a smaller and a larger size such as 3-3.5, got {sizes}")
    totals = totals_of([m.matrix for m in matrices], 0)
    budgets = [Budget("bits_per_weight", size).nbytes(totals) for size in sizes.sizes]
    families = {m.name: _families(m) for m in matrices}
    least = sum(min(f.nbytes[0] for f in known) for known in families.values())
    if budgets[0] < least:
        enough = Budget("bits_per_weight", sizes.low).enough(int(least), totals)
        raise ValueError(f"`range` must begin at {enough} or above, got {sizes}")
    single = allocate({name: _joined(known).options() for name, known in families.items()}, budgets)
    families = {
        name: _planned(known, [a.chosen[name] for a in single]) for name, known in families.items()
    }
    worth = [1 / max(a.cost, np.finfo(float).tiny) for a in single]
    prices = [a.multiplier for a in single]
    best: tuple[float, dict[str, _Family]] | None = None
    for _ in range(ROUNDS):
        chosen = _chosen(families, prices, worth, budgets[0])
        found = _judged(chosen, budgets, worth)
        if best is None or found < best[0]:
            best = found, chosen
        prices = list(_adjusted(chosen, budgets, prices))
    assert best is not None
    (top,) = allocate({name: f.options() for name, f in best[1].items()}, budgets[-1:])
    return BitsPlan(
        budget=sizes.high,
        asked=str(sizes),
        weights=totals.weights,
        lower_bound=top.lower_bound,
        chosen={name: f.offers[top.chosen[name]] for name, f in best[1].items()},
    )


def _families(m: Offered) -> list[_Family]:
    """Return the families of a matrix: offers with a rank begin at their backbone alone.

    Factors without a backbone are none where there are backbones: dialled down they lose most of
    the matrix, far beyond the small errors that prices are true of.
    """
    plain = {(o.bits, o.group_size): o for o in m.offers if not o.rank}
    has_backbone = any(o.bits is not None for o in m.offers)
    ranked = dict[tuple[int | None, int, int], list[Offer]]()
    for o in m.offers:
        if o.rank and (o.bits is not None or not has_backbone):
            key = o.bits, o.group_size, o.factor_bits
            ranked.setdefault(key, []).append(o)
    found = [[o] for o in plain.values()]
    for (bits, size, _), offers in ranked.items():
        alone = [plain[bits, size]] if bits is not None and (bits, size) in plain else []
        found.append(sorted([*alone, *offers], key=lambda o: o.nbytes))
    return [_Family.of(offers) for offers in found]


def _joined(known: Sequence[_Family]) -> _Family:
    """Return all offers of some families, in their order."""
    return _Family.of([o for family in known for o in family.offers])


def _planned(known: Sequence[_Family], chosen: Sequence[int]) -> list[_Family]:
    """Return the families with the bits of an offer that is chosen among all of theirs.

    Prices are estimates: what no plan for one size takes would be taken where they are furthest
    off.
    """
    offers = _joined(known).offers
    bits = {offers[place].bits for place in chosen}
    return [family for family in known if family.offers[0].bits in bits]


def _chosen(
    families: Mapping[str, Sequence[_Family]],
    prices: Sequence[float],
    worth: Sequence[float],
    smallest: int,
) -> dict[str, _Family]:
    """Return the families that cost least at all sizes together and fit into the smallest."""
    pairs = list(zip(prices, worth, strict=True))
    options = {
        name: [Option(f.offers[0].nbytes, sum(w * f.at(p)[0] for p, w in pairs), f) for f in known]
        for name, known in families.items()
    }
    (found,) = allocate(options, [smallest])
    return {name: families[name][place] for name, place in found.chosen.items()}


def _judged(chosen: Mapping[str, _Family], budgets: Sequence[int], worth: Sequence[float]) -> float:
    """Return the mean cost over that of a plan for each size."""
    found = allocate({name: f.options() for name, f in chosen.items()}, budgets)
    return float(np.mean([w * a.cost for a, w in zip(found, worth, strict=True)]))


def _adjusted(
    chosen: Mapping[str, _Family], budgets: Sequence[int], prices: Sequence[float]
) -> Iterator[float]:
    """Yield dearer bytes for sizes that took too many, cheaper ones for those that took too few."""
    for budget, price in zip(budgets, prices, strict=True):
        used = sum(f.at(price)[1] for f in chosen.values())
        yield price * (used / budget) ** 2
