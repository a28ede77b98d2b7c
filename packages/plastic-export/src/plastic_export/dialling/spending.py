"""A budget spent anew over the components that a folder stores. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from plastic_runtime.dialling import (
    Spendable,
    bytes_at,
    cheapest_ranks,
    largest_ranks,
    least_ranks,
)

from plastic_export.dialling.turning import Ranks, Turnable
from plastic_export.plan.budgets import Budget, Totals

FileBytes = Callable[[Ranks], int]
"""Bytes of the model files with so many components awake, headers counted."""


@dataclass(frozen=True)
class Purse:
    """All that a budget is spent by.

    Attributes:
        matrices: The matrices that are turned.
        totals: What budgets are measured against; its ``left_bytes`` are not used.
        unturned_bytes: Bytes of all matrices of the manifest that are not turned.
        file_bytes: Bytes of the model files by ranks.
    """

    matrices: Mapping[str, Turnable]
    totals: Totals
    unturned_bytes: int
    file_bytes: FileBytes

    @property
    def _seen(self) -> dict[str, Spendable]:
        return {name: m.spendable for name, m in self.matrices.items()}

    def all(self) -> dict[str, int]:
        """Return the ranks with everything awake."""
        return largest_ranks(self._seen)

    def least(self) -> dict[str, int]:
        """Return the least ranks."""
        return least_ranks(self._seen)

    def ranks_within(self, budget: Budget) -> dict[str, int]:
        """Return the ranks that cost least within a budget.

        Raises:
            ValueError: If the budget is below what stays of every matrix in any case, or above all
                that is stored; the message names both.
        """
        self._check(budget)
        allowed = budget.nbytes(self.totals)
        if allowed >= self._spent(self.all(), budget):
            return self.all()
        room = allowed - self.unturned_bytes
        if budget.kind != "size":
            return self._chosen(room)
        return self._within_files(allowed)

    def _within_files(self, allowed: int) -> dict[str, int]:
        """Return the ranks within bytes of whole files, whose headers depend on the ranks."""
        room = allowed - self.file_bytes(self.least()) + self._bytes(self.least())
        while True:
            ranks = self._chosen(room)
            over = self.file_bytes(ranks) - allowed
            if over <= 0:
                return ranks
            room -= over

    def _chosen(self, room: int) -> dict[str, int]:
        """Return the ranks that cost least in so many bytes, or the least ones."""
        strategy = next(m.strategy for m in self.matrices.values())
        return cheapest_ranks(self._seen, room, strategy)

    def _bytes(self, ranks: Ranks) -> int:
        return bytes_at(self._seen, ranks)

    def _spent(self, ranks: Ranks, budget: Budget) -> int:
        """Return the bytes that a budget counts."""
        if budget.kind == "size":
            return self.file_bytes(ranks)
        return self.unturned_bytes + self._bytes(ranks)

    def _largest_component(self) -> int:
        """Return what a size that a folder was planned for may be above what it stores."""
        return max(m.component_bytes for m in self._seen.values())

    def _check(self, budget: Budget) -> None:
        least, most = self._spent(self.least(), budget), self._spent(self.all(), budget)
        allowed = budget.nbytes(self.totals) if math.isfinite(budget.value) else budget.value
        if not least <= allowed <= most + self._largest_component():
            raise ValueError(
                f"`{budget.kind}` must be at least {budget.enough(least, self.totals)}, without "
                f"what can be left out, and at most {budget.enough(most, self.totals)}, with all "
                f"that is stored, got {budget}"
            )
