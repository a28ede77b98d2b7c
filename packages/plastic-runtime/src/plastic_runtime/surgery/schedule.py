"""A budget in bytes over the steps of a training, and how layers share it: pure decisions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from plastic_select import Option, allocate, rank_options

from plastic_runtime.surgery.byte_count import ByteCount


@dataclass(frozen=True)
class Schedule:
    r"""The bytes that may be awake after a number of steps.

    Up to ``begin`` the first budget holds, from ``end`` on the last; in between

    .. math::

        b(t) = b_\text{last} + (b_\text{first} - b_\text{last})
            \left(1 - \frac{t - t_\text{begin}}{t_\text{end} - t_\text{begin}}\right)^3 .

    Attributes:
        first: Bytes awake at the start, those that the model comes with.
        last: Bytes awake at the end, not above ``first``.
        begin: Steps before the first reallocation, at least 1: a component needs time to earn.
        end: Steps after which nothing is reallocated any more; above ``begin``, or equal to it
            for a single reallocation.
        every: Steps between two reallocations.

    References:
        The cubic: Zhang et al., *AdaLoRA*, 2023, arXiv 2303.10512, equation 12, after Zhu and
        Gupta, 2017, arXiv 1710.01878.

    Examples:
        >>> schedule = Schedule(first=100, last=20, begin=10, end=30, every=10)
        >>> [schedule.budget(step) for step in (0, 10, 20, 30)]
        [100, 100, 30, 20]
    """

    first: int
    last: int
    begin: int
    end: int
    every: int

    def __post_init__(self) -> None:
        if not 1 <= self.last <= self.first:
            raise ValueError(f"`last` must be from 1 to {self.first} (`first`), got {self.last}.")
        if not 1 <= self.begin <= self.end:
            raise ValueError(f"`begin` must be from 1 to {self.end} (`end`), got {self.begin}.")
        if self.every < 1:
            raise ValueError(f"`every` must be at least 1, got {self.every}.")

    def budget(self, step: int) -> int:
        """Return the bytes that may be awake after ``step`` steps."""
        if step < self.begin:
            return self.first
        remaining = 1 - (step - self.begin) / (self.end - self.begin) if step < self.end else 0.0
        return self.last + round((self.first - self.last) * remaining**3)

    def due(self, step: int) -> bool:
        """Tell whether components are reallocated after ``step`` steps."""
        if not self.begin <= step <= self.end:
            return False
        return step == self.end or (step - self.begin) % self.every == 0


@dataclass(frozen=True)
class Holding:
    """The components that a layer could keep awake.

    Attributes:
        path: Module path in the model.
        values: Non-increasing: component i is worth ``values[i]^2 / 2`` of the loss.
        bytes_per_rank: Bytes of one component.
        floor: Components that stay in any case.

    Examples:
        >>> Holding("layers.0", values=(3.0, 1.0), bytes_per_rank=8).floor
        1
    """

    path: str
    values: tuple[float, ...]
    bytes_per_rank: int
    floor: int = 1


def redistribute(
    holdings: Sequence[Holding], max_bytes: int, count: ByteCount | None = None
) -> dict[str, int]:
    """Return the rank of every layer at which the least is predicted to be lost.

    Where ``count`` gives one rank to all, every rank is tried as the highest: a layer then has
    that many components, as many as it holds, or, where its floor is 0, none at all.

    Args:
        holdings: All managed layers.
        max_bytes: Bytes for all of them together.
        count: How their bytes are counted; by default ``bytes_per_rank`` for every component.

    Returns:
        Ranks by path: the optimum, or next to it (``plastic_select.allocate``), never above the
        budget.

    Raises:
        ValueError: If the floors alone exceed the budget; gives the least one.

    Examples:
        >>> holdings = [Holding("a", (3.0, 1.0), 8), Holding("b", (2.0, 0.5), 8)]
        >>> redistribute(holdings, max_bytes=24)
        {'a': 2, 'b': 1}
    """
    count = count or ByteCount({h.path: h.bytes_per_rank for h in holdings})
    floors = {h.path: min(h.floor, len(h.values)) for h in holdings}
    if count(floors) > max_bytes:
        raise ValueError(
            f"the budget must be at least {count(floors)} bytes, which one component per layer "
            f"takes ({len(holdings)} layers), got {max_bytes}; raise it or adapt fewer layers."
        )
    held = [h for h in holdings if h.values]
    found = [_share(offer, max_bytes - count.fixed) for offer in _offers(held, count)]
    best = min((one for one in found if one), key=lambda one: one.cost, default=None)
    return floors | (best.ranks if best else {})


class _Share(NamedTuple):
    """Ranks by path, and what they are predicted to lose."""

    ranks: dict[str, int]
    cost: float


Offer = dict[str, list[Option]]


def _offers(holdings: Sequence[Holding], count: ByteCount) -> Iterator[Offer]:
    """Yield what all layers offer: ranks of their own, or each with one highest rank for all."""
    if not count.one_rank:
        yield {h.path: _own_ranks(h, count) for h in holdings}
        return
    for highest in _highest_ranks(max((len(h.values) for h in holdings), default=0)):
        yield {h.path: _shared_rank(h, count, highest) for h in holdings}


def _own_ranks(holding: Holding, count: ByteCount) -> list[Option]:
    """Return every rank of a layer, from its floor on, with what it loses."""
    path, values = holding.path, holding.values
    costs = rank_options(
        values,
        bytes_per_component=count.components[path],
        base_bytes=count.layers.get(path, 0),
        floor=min(holding.floor, len(values)),
    )
    return [option if option.label else option._replace(nbytes=0) for option in costs]


def _shared_rank(holding: Holding, count: ByteCount, highest: int) -> list[Option]:
    """Return a layer without a component, if it may be, and with the room of the highest rank."""
    rank = min(highest, len(holding.values))
    nothing, full = (_lost(holding.values[r:]) for r in (0, rank))
    awake = Option(count.layer(holding.path, highest), full, rank)
    return [awake] if holding.floor else [Option(0, nothing, 0), awake]


def _lost(values: Sequence[float]) -> float:
    return math.fsum(value**2 for value in values) / 2


def _highest_ranks(most: int) -> list[int]:
    """Return the ranks that are tried: all up to 16, then in steps of an eighth."""
    ranks = list(range(1, min(most, 16) + 1))
    while ranks and ranks[-1] < most:
        ranks.append(min(most, ranks[-1] + ranks[-1] // 8))
    return ranks


def _share(offer: Offer, max_bytes: int) -> _Share | None:
    """Return the best of an offer in the budget; None where there is nothing in it."""
    least = sum(min(option.nbytes for option in options) for options in offer.values())
    if not offer or least > max_bytes:
        return None
    (allocation,) = allocate(offer, [max_bytes])
    chosen = {path: offer[path][i] for path, i in allocation.chosen.items()}
    return _Share({path: option.label for path, option in chosen.items()}, allocation.cost)
