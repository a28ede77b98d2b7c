"""What leaving out the components of a matrix costs, for every rank that may be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class ComponentCurve:
    """What is left to pay with the first r stored components of a matrix.

    Attributes:
        ranks: The ranks that may be kept, increasing; the last one is that of all components.
        predicted_kl: Predicted rise of the KL divergence to the source at each, nats per token.
        relative_error: ``||W - W'||_F / ||W||_F`` at each.
        spectral_error: ``||W - W'||_2 / ||W||_2`` with all of them.
        spectral_norm: ``||W||_2`` of the matrix in the source.

    Examples:
        >>> curve = ComponentCurve((0, 1, 2), (0.5, 0.2, 0.1), (0.3, 0.2, 0.1), 0.1, 4.0)
        >>> curve.at(1), curve.until(1, 0.25).ranks
        ((0.2, 0.2), (0, 1))
    """

    ranks: tuple[int, ...]
    predicted_kl: tuple[float, ...]
    relative_error: tuple[float, ...]
    spectral_error: float
    spectral_norm: float

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """Return the curve that a manifest holds."""
        return cls(
            tuple(map(int, raw["ranks"])),
            tuple(map(float, raw["predicted_kl"])),
            tuple(map(float, raw["relative_error"])),
            float(raw["spectral_error"]),
            float(raw["spectral_norm"]),
        )

    def at(self, rank: int) -> tuple[float, float]:
        """Return the predicted divergence and the relative error at one of ``ranks``."""
        place = self.ranks.index(rank)
        return self.predicted_kl[place], self.relative_error[place]

    def until(self, rank: int, spectral_error: float) -> Self:
        """Return the curve of the first ``rank`` components alone."""
        stop = self.ranks.index(rank) + 1
        return replace(
            self,
            ranks=self.ranks[:stop],
            predicted_kl=self.predicted_kl[:stop],
            relative_error=self.relative_error[:stop],
            spectral_error=spectral_error,
        )
