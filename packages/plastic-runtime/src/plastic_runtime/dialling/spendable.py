"""A matrix with components as a budget sees it: bytes and cost by rank. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from plastic_core.files import FormatError

from plastic_runtime.dialling.manifest import MatrixRecord
from plastic_runtime.dialling.spectrum_text import decoded_spectrum


@dataclass(frozen=True)
class Spendable:
    """A matrix whose components a budget may be spent on.

    Attributes:
        record: What the manifest says of it.
        ranks: How many of its components may be awake, increasing.
        component_bytes: Bytes of one component, scales and offsets counted.

    Examples:
        >>> record = read_manifest(Path("FACTORED")).matrices["block.0.up.weight"]
        >>> matrix = Spendable(record, component_ranks(Path("FACTORED"), record), 80)
        >>> matrix.nbytes(2) - matrix.nbytes(1)
        80
    """

    record: MatrixRecord
    ranks: tuple[int, ...]
    component_bytes: int

    def nbytes(self, rank: int) -> int:
        """Return its bytes with so many components awake, those of its backbone counted."""
        return self.record.stored_bytes + (rank - self.record.rank) * self.component_bytes

    def cost(self, rank: int) -> float:
        """Return its price with so many awake, nats per token; 0 where ranks have no prices."""
        return self.record.curve.at(rank)[0] if self.record.curve else 0.0

    def energy(self) -> tuple[float, ...]:
        """Return the squares of its spectrum, largest first; none where ranks have prices."""
        squares = np.square(decoded_spectrum(self.record.spectrum))
        return tuple(squares.tolist())


def component_ranks(folder: Path, r: MatrixRecord) -> tuple[int, ...]:
    """Return how many components of a matrix may be awake, increasing.

    Args:
        folder: The folder of the matrix, for the message.
        r: A matrix with components.

    Raises:
        FormatError: If it is not known what leaving some out would cost.

    Examples:
        >>> record = read_manifest(Path("FACTORED")).matrices["block.0.up.weight"]
        >>> component_ranks(Path("FACTORED"), record)
        (1, 2, 3, 4, 5, 6, 7, 8)
    """
    if r.curve is not None:
        return r.curve.ranks
    if r.spectrum:
        return tuple(range(1, r.components + 1))
    reason = (
        f"it holds no prices of the components of {r.name!r}: an older version wrote or healed it"
    )
    remedy = "compress its source again with this version"
    raise FormatError.about(folder, reason, remedy)
