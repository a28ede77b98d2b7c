"""The ranks that the matrices of a folder may be turned to, and what they are under each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from plastic_runtime.dialling import (
    Manifest,
    MatrixRecord,
    Spendable,
    component_ranks,
    component_records,
)

from plastic_export.format.layout import Contents, candidate_of, offer_of
from plastic_export.format.protocol import Format
from plastic_export.plan.offers import Candidate, Offer, factor_bytes

Ranks = Mapping[str, int]
"""Components awake of every matrix that has any, by tensor name."""


@dataclass(frozen=True)
class Turnable:
    """A matrix with components.

    Attributes:
        record: What the manifest says of it.
        ranks: How many of its components may be awake, increasing.
        strategy: The rule that chose its rank; None where prices did.
    """

    record: MatrixRecord
    ranks: tuple[int, ...]
    strategy: str | None = None

    @property
    def matrix(self) -> Candidate:
        """The matrix itself."""
        return candidate_of(self.record)

    @property
    def spendable(self) -> Spendable:
        """What a budget sees of it."""
        r = self.record
        return Spendable(r, self.ranks, factor_bytes(r.shape, 1, r.factor_bits, r.dtype))

    def offer(self, rank: int, *, park: bool) -> Offer:
        """Return how it is stored with ``rank`` components awake, the others asleep or gone."""
        r, parked = self.record, self.record.components - rank if park else 0
        if rank == r.rank and parked == r.parked:
            return offer_of(r)
        seen = self.spendable
        return Offer(
            bits=r.bits,
            nbytes=seen.nbytes(rank),
            cost=seen.cost(rank),
            rank=rank,
            factor_bits=r.factor_bits if rank + parked else 0,
            group_size=r.group_size,
            parked=parked,
        )


def turnable_matrices(folder: Path, manifest: Manifest) -> dict[str, Turnable]:
    """Return the matrices of a folder that can be turned, by tensor name.

    Raises:
        FormatError: If its format has no components, none of its matrices has any, or it is not
            known what leaving them out would cost.
    """
    records = component_records(folder, manifest)
    strategy = manifest.options.get("strategy")
    return {r.name: Turnable(r, component_ranks(folder, r), strategy) for r in records}


def turned_contents(
    before: Contents, matrices: Mapping[str, Turnable], ranks: Ranks, *, park: bool
) -> Contents:
    """Return what becomes of all matrices of a folder.

    Args:
        before: What became of them in the folder.
        matrices: Those that are turned.
        ranks: Their components awake.
        park: Whether the other components sleep beside them.
    """
    turned = {name: matrices[name].offer(rank, park=park) for name, rank in ranks.items()}
    format: Format = before.format
    return Contents.of(format, before.matrices.values(), {**before.chosen, **turned})
