"""A budget spent anew over the components that a folder stores. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from plastic_select import Option, allocate

from plastic_export.compression.ranks import Surveyed, plan_ranks
from plastic_export.compression.spectra import decoded_spectrum
from plastic_export.dialling.turning import Ranks, Turnable
from plastic_export.plan.budgets import Budget, Totals
from plastic_export.plan.offers import factor_bytes

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

    def all(self) -> dict[str, int]:
        """Return the ranks with everything awake."""
        return {name: m.ranks[-1] for name, m in self.matrices.items()}

    def least(self) -> dict[str, int]:
        """Return the least ranks."""
        return {name: m.ranks[0] for name, m in self.matrices.items()}

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
        room = max(room, self._bytes(self.least()))
        strategy = next(m.strategy for m in self.matrices.values())
        return self._by_price(room) if strategy is None else self._by_strategy(room, strategy)

    def _by_price(self, room: int) -> dict[str, int]:
        options = {
            name: [_option(m, rank) for rank in m.ranks] for name, m in self.matrices.items()
        }
        (found,) = allocate(options, [room])
        return {name: self.matrices[name].ranks[place] for name, place in found.chosen.items()}

    def _by_strategy(self, room: int, strategy: str) -> dict[str, int]:
        surveyed = [_surveyed(m) for m in self.matrices.values()]
        keep = min(1.0, room / sum(m.source_bytes for m in surveyed))
        chosen = plan_ranks(surveyed, keep, strategy).matrices
        most = {m.name: m.break_even for m in surveyed}
        return {p.name: min(p.rank, most[p.name], self.all()[p.name]) for p in chosen}

    def _bytes(self, ranks: Ranks) -> int:
        return sum(
            self.matrices[name].offer(rank, park=False).nbytes for name, rank in ranks.items()
        )

    def _spent(self, ranks: Ranks, budget: Budget) -> int:
        """Return the bytes that a budget counts."""
        if budget.kind == "size":
            return self.file_bytes(ranks)
        return self.unturned_bytes + self._bytes(ranks)

    def _largest_component(self) -> int:
        """Return what a size that a folder was planned for may be above what it stores."""
        records = [m.record for m in self.matrices.values()]
        return max(factor_bytes(r.shape, 1, r.factor_bits, r.dtype) for r in records)

    def _check(self, budget: Budget) -> None:
        least, most = self._spent(self.least(), budget), self._spent(self.all(), budget)
        allowed = budget.nbytes(self.totals) if math.isfinite(budget.value) else budget.value
        if not least <= allowed <= most + self._largest_component():
            raise ValueError(
                f"`{budget.kind}` must be at least {budget.enough(least, self.totals)}, without "
                f"what can be left out, and at most {budget.enough(most, self.totals)}, with all "
                f"that is stored, got {budget}"
            )


def _option(m: Turnable, rank: int) -> Option:
    offer = m.offer(rank, park=False)
    return Option(offer.nbytes, offer.cost, rank)


def _surveyed(m: Turnable) -> Surveyed:
    r = m.record
    return Surveyed(r.name, r.shape, r.dtype, r.source_bytes, decoded_spectrum(r.spectrum))
