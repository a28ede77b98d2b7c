"""The size that requests get which name none: the largest that leaves room for what they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RESERVE = 20
"""One part in so many of a limit is left to what no request accounts for."""
SLACK = 20
"""One part in so many must be free beyond that before the model is turned up."""


@dataclass(frozen=True)
class MemoryPolicy:
    """A limit of memory, and what follows from it. Pure.

    Attributes:
        limit: Bytes that weights, caches and all else may take.

    Raises:
        ValueError: If the least size does not fit; it is named.

    Examples:
        >>> policy = MemoryPolicy(1000)
        >>> sizes = (400, 600, 800)
        >>> policy.size(sizes, now=800, needed=100), policy.size(sizes, now=800, needed=200)
        (800, 600)
        >>> policy.size(sizes, now=600, needed=120), policy.size(sizes, now=600, needed=90)
        (600, 800)
    """

    limit: int

    @property
    def room(self) -> int:
        """Bytes for the weights and what requests need."""
        return self.limit - -(-self.limit // RESERVE)

    def check(self, least: int) -> None:
        """Raise unless the least size fits."""
        if least > self.room:
            enough = -(-least * RESERVE // (RESERVE - 1))
            raise ValueError(
                f"`memory` must be at least {enough:,} bytes, the least size of this model and "
                f"{1 / RESERVE:.0%} for the rest, got {self.limit} bytes"
            )

    def size(self, sizes: Sequence[int], *, now: int, needed: int) -> int:
        """Return the size that is to be taken.

        Args:
            sizes: Bytes of the weights at every size that there is to choose, increasing.
            now: The size that was taken last.
            needed: Bytes that all requests at hand need beside the weights.

        Returns:
            The largest size that fits, but no larger than ``now`` unless there is some room beyond;
            the least where none fits.
        """
        free = self.room - needed
        slack = self.limit // SLACK
        fits = [s for s in sizes if s <= free and (s <= now or s + slack <= free)]
        return max(fits, default=sizes[0])
