"""The sizes that a folder can be loaded at, and the ranks of each. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from plastic_runtime.dialling.asked_size import AskedSize
from plastic_runtime.dialling.spendable import Spendable
from plastic_runtime.dialling.spending import (
    Ranks,
    bytes_at,
    cheapest_ranks,
    largest_ranks,
    least_ranks,
)


@dataclass(frozen=True)
class FolderSizes:
    """All that sizes of a folder follow from.

    Attributes:
        matrices: The matrices with components, by tensor name.
        strategy: The rule that chose their ranks; None where prices did.
        rest_bytes: Bytes of all other tensors of the model files.
        unturned_bytes: Of these, the bytes of the other matrices that were compressed.
        weights: Entries of all matrices that were compressed.
        source_bytes: Bytes of the same in the source.
    """

    matrices: Mapping[str, Spendable]
    strategy: str | None
    rest_bytes: int
    unturned_bytes: int
    weights: int
    source_bytes: int

    @property
    def least(self) -> int:
        """Bytes of all weights at the least ranks."""
        return self.nbytes(least_ranks(self.matrices))

    @property
    def largest(self) -> int:
        """Bytes of all weights with everything awake."""
        return self.nbytes(largest_ranks(self.matrices))

    def nbytes(self, ranks: Ranks) -> int:
        """Return the bytes of all weights at these ranks."""
        return self.rest_bytes + bytes_at(self.matrices, ranks)

    def price(self, ranks: Ranks) -> float:
        """Return what the components asleep cost: see `priced_in`."""
        if self.strategy is None:
            return math.fsum(self.matrices[name].cost(rank) for name, rank in ranks.items())
        energies = {name: m.energy() for name, m in self.matrices.items()}
        asleep = math.fsum(math.fsum(energies[name][rank:]) for name, rank in ranks.items())
        return asleep / math.fsum(map(math.fsum, energies.values()))

    @property
    def priced_in(self) -> str:
        """The unit of prices: predicted divergence, or the fraction of squared spectra asleep."""
        return "nats per token" if self.strategy is None else "energy asleep"

    def ranks_within(self, size: AskedSize) -> dict[str, int]:
        """Return the ranks that cost least within a size.

        Raises:
            ValueError: If it is below the least or above the largest; both are named.
        """
        allowed = self._allowed(size)
        if allowed >= self.largest:
            return largest_ranks(self.matrices)
        return cheapest_ranks(self.matrices, allowed - self.rest_bytes, self.strategy)

    def _allowed(self, size: AskedSize) -> int:
        """Return the bytes that all weights may take."""
        kind, value = size
        unit, offset = self._scale(kind)
        spare = 0 if kind in ("bytes", "fraction") else self._largest_component()
        allowed = math.floor(value * unit) + offset if math.isfinite(value) else -1
        if not self.least <= allowed <= self.largest + spare:
            least, largest = (
                _stated(kind, n, (n - offset) / unit) for n in (self.least, self.largest)
            )
            raise ValueError(
                f"`{kind}` must be at least {least}, without what can be left out, and at most "
                f"{largest}, with all that is stored, got {value:,}"
            )
        return allowed

    def _scale(self, kind: str) -> tuple[float, int]:
        """Return the bytes of a unit, and those that are not counted."""
        others = self.rest_bytes - self.unturned_bytes
        return {
            "bytes": (1, 0),
            "fraction": (self.largest, 0),
            "bits_per_weight": (self.weights / 8, others),
            "keep": (self.source_bytes, others),
        }[kind]

    def _largest_component(self) -> int:
        """Return what a size that a folder was planned for may be above what it stores."""
        return max(m.component_bytes for m in self.matrices.values())


def _stated(kind: str, nbytes: int, value: float) -> str:
    """Return an end of the range as it can be asked for."""
    if kind == "bytes":
        return f"{nbytes:,}"
    return f"{math.ceil(1e4 * value) / 1e4:g} ({nbytes:,} bytes)"
