"""From what every matrix offers to the bits that each one gets, for budgets in bytes. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from plastic_select import Option, allocate

from plastic_export.header import ITEM_BYTES


class Offer(NamedTuple):
    """One way of storing a matrix.

    Attributes:
        bits: Of its codes; None where it stays exactly as it is in the source.
        nbytes: Bytes on disk, scales and offsets counted.
        cost: Predicted rise of the KL divergence to the source, nats per token.
    """

    bits: int | None
    nbytes: int
    cost: float


@dataclass(frozen=True)
class Candidate:
    """A matrix of the source that can be quantised.

    Attributes:
        name: Tensor name.
        shape: ``(out, in)`` of the dense weight.
        dtype: Storage type of the scales: the weight's own, or its scales' where it is packed.
        group_size: Neighbouring inputs that share a scale.
        source_bytes: Bytes in the source, scales and offsets counted.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    group_size: int
    source_bytes: int

    @property
    def weights(self) -> int:
        """Entries of the dense weight."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Offered(Candidate):
    """A matrix and all the ways of storing it.

    Attributes:
        offers: By increasing bytes; the last one leaves it as it is.
    """

    offers: tuple[Offer, ...]

    def offer(self, bits: int | None) -> Offer:
        """The offer of these bits.

        Raises:
            ValueError: If there is none.
        """
        for offer in self.offers:
            if offer.bits == bits:
                return offer
        known = ", ".join("null" if o.bits is None else str(o.bits) for o in self.offers)
        raise ValueError(f"`bits` of {self.name!r} must be one of {known}, got {bits!r}")


@dataclass(frozen=True)
class BitsPlan:
    """One budget, and the offer that every matrix takes under it.

    Attributes:
        budget: Bits per weight that were asked for.
        weights: Entries of all the matrices.
        lower_bound: No choice within the budget is predicted to cost less, nats per token: the
            optimum of the linear relaxation.
        chosen: The offer of each matrix, by tensor name, in the order of the checkpoint.
    """

    budget: float
    weights: int
    lower_bound: float
    chosen: Mapping[str, Offer]

    @property
    def nbytes(self) -> int:
        """Bytes of all the matrices on disk."""
        return sum(offer.nbytes for offer in self.chosen.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk per entry of the matrices, scales and offsets counted."""
        return 8 * self.nbytes / self.weights

    @property
    def cost(self) -> float:
        """Predicted KL divergence to the source, nats per token."""
        return math.fsum(offer.cost for offer in self.chosen.values())

    @property
    def gap(self) -> float:
        """``cost`` above ``lower_bound``, as a fraction of that; infinite above a bound of 0."""
        if self.cost <= self.lower_bound:
            return 0.0
        return self.cost / self.lower_bound - 1 if self.lower_bound else math.inf

    @property
    def mix(self) -> dict[int | None, int]:
        """How many matrices have how many bits, fewest bits first, those left as they are last."""
        counts = Counter(offer.bits for offer in self.chosen.values())
        return dict(sorted(counts.items(), key=lambda item: item[0] or math.inf))


def packed_bytes(shape: tuple[int, int], bits: int, group_size: int, dtype: str) -> int:
    """Bytes of a matrix in MLX's affine format: codes, and a scale and an offset per group."""
    entries = math.prod(shape)
    return entries * bits // 8 + 2 * (entries // group_size) * ITEM_BYTES[dtype]


def plan_bits(
    matrices: Sequence[Offered], bits_per_weight: Sequence[float]
) -> tuple[BitsPlan, ...]:
    """Choose the bits of every matrix so that the predicted divergence is least.

    Args:
        matrices: What each matrix offers.
        bits_per_weight: One budget per plan wanted: bytes of all the matrices on disk, scales
            counted, times 8, over their entries.

    Returns:
        One plan per budget, in that order, never over it. None depends on the others.

    Raises:
        ValueError: If there are no matrices, or a budget is below the least possible or above
            the size of the source.
    """
    if not matrices:
        raise ValueError("no matrix can be quantised; drop an --exclude")
    weights = sum(m.weights for m in matrices)
    least = sum(min(o.nbytes for o in m.offers) for m in matrices)
    check_budgets(bits_per_weight, weights, least, sum(m.source_bytes for m in matrices))
    offers = {m.name: [Option(o.nbytes, o.cost, o) for o in m.offers] for m in matrices}
    budgets = [math.floor(budget * weights / 8) for budget in bits_per_weight]
    return tuple(
        BitsPlan(
            budget=budget,
            weights=weights,
            lower_bound=found.lower_bound,
            chosen={name: offers[name][i].label for name, i in found.chosen.items()},
        )
        for budget, found in zip(bits_per_weight, allocate(offers, budgets), strict=True)
    )


def check_budgets(bits_per_weight: Sequence[float], weights: int, least: int, most: int) -> None:
    """Raise unless all matrices fit each budget at their fewest bits, and none fits them dense.

    Args:
        bits_per_weight: The budgets.
        weights: Entries of all the matrices.
        least: Their bytes at the fewest bits.
        most: Their bytes in the source.
    """
    for budget in bits_per_weight:
        if not budget * weights / 8 >= least:
            enough = math.ceil(8e4 * least / weights) / 1e4
            raise ValueError(
                f"`bits_per_weight` must be at least {enough:g}, the fewest bits in every matrix, "
                f"got {budget:g}"
            )
        if budget * weights / 8 > most:
            raise ValueError(
                f"`bits_per_weight` must be at most {8 * most / weights:g}, got {budget:g}: the "
                "matrices fit dense, as they are in the source"
            )
