"""A budget in bytes over the steps of a training, and how layers share it: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plastic_select import allocate, rank_options


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
    """

    path: str
    values: tuple[float, ...]
    bytes_per_rank: int
    floor: int = 1


def redistribute(holdings: Sequence[Holding], max_bytes: int) -> dict[str, int]:
    """Return the rank of every layer at which the least is predicted to be lost.

    Args:
        holdings: All managed layers.
        max_bytes: Bytes for all of them together.

    Returns:
        Ranks by path: the optimum, or next to it (``plastic_select.allocate``), never above the
        budget.

    Raises:
        ValueError: If the floors alone exceed the budget; gives the least one.
    """
    least = sum(min(h.floor, len(h.values)) * h.bytes_per_rank for h in holdings)
    if least > max_bytes:
        raise ValueError(
            f"the budget must be at least {least} bytes, which one component per layer takes "
            f"({len(holdings)} layers), got {max_bytes}; raise it or adapt fewer layers."
        )
    options = {
        h.path: rank_options(
            h.values,
            bytes_per_component=h.bytes_per_rank,
            floor=min(h.floor, len(h.values)),
        )
        for h in holdings
        if h.values
    }
    ranks = dict.fromkeys((h.path for h in holdings), 0)
    if options:
        (allocation,) = allocate(options, [max_bytes])
        sizes = {h.path: h.bytes_per_rank for h in holdings}
        for path, i in allocation.chosen.items():
            ranks[path] = options[path][i].nbytes // sizes[path]
    return ranks
