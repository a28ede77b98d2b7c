"""How much of a difference an adapter holds: one budget over the components of all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from plastic_core.linalg import Float64
from plastic_runtime import ByteCount, Holding, redistribute

_FIRST = 16  # components of a matrix that are looked at where nothing says how many


@dataclass(frozen=True)
class Amount:
    """How much is kept: at most one of these; without any, all that stands out of rounding.

    Attributes:
        max_bytes: Bytes of the file of an adapter at most.
        energy: Share of the squares of all components, in (0, 1]; where rounding hides what is
            missing for it, all that stands out.
        rank: Components of every layer at most.

    Raises:
        ValueError: If there are several, or one is out of range.

    Examples:
        >>> Amount(energy=0.95)
        Amount(max_bytes=None, energy=0.95, rank=None)
    """

    max_bytes: int | None = None
    energy: float | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        given = [n for n in ("max_bytes", "energy", "rank") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(f'`{name}`' for name in given)}: give one of them")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"`energy` must be in (0, 1], got {self.energy}; 0.95 keeps 95 %")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"`rank` must be at least 1, got {self.rank}")

    def first_guess(self, count: ByteCount) -> int:
        """Return how many components of a matrix to look at first."""
        if self.max_bytes is None:
            return _FIRST if self.rank is None else self.rank + max(4, self.rank // 2)
        return _FIRST // 2 + 2 * self.max_bytes // sum(count.components.values())

    def ranks(
        self, spectra: Mapping[str, Float64], count: ByteCount, total: float
    ) -> dict[str, int]:
        """Choose the rank of every layer: the components that are worth most for their bytes.

        Args:
            spectra: Singular values of what may be kept of every layer, non-increasing, by path.
                A component is worth the square of its own.
            count: The bytes of an adapter at given ranks.
            total: The squares of all components, those among them that may not be kept.

        Returns:
            Ranks by path, 0 among them.

        Raises:
            ValueError: If the budget is below one component; gives the least one.
        """
        if self.max_bytes is not None:
            return _within(spectra, count, self.max_bytes)
        if self.energy is not None:
            return _with_energy(spectra, count, self.energy * total)
        most = self.rank or max(len(values) for values in spectra.values())
        return {path: min(most, len(values)) for path, values in spectra.items()}


def _within(spectra: Mapping[str, Float64], count: ByteCount, max_bytes: int) -> dict[str, int]:
    least = min(count({path: 1}) for path, values in spectra.items() if len(values))
    if max_bytes < least:
        raise ValueError(
            f"`max_bytes` must be at least {least}, which an adapter of one component takes, "
            f"got {max_bytes}"
        )
    held = [
        Holding(path, tuple(values.tolist()), count.components[path], 0)
        for path, values in spectra.items()
    ]
    return redistribute(held, max_bytes, count)


def _with_energy(spectra: Mapping[str, Float64], count: ByteCount, wanted: float) -> dict[str, int]:
    """Take components in the order of their squares per byte until they are enough."""
    lengths = [len(values) for values in spectra.values()]
    squares = np.concatenate([values**2 for values in spectra.values()])
    owners = np.repeat(np.arange(len(spectra)), lengths)
    nbytes = np.repeat([count.components[path] for path in spectra], lengths)
    order = np.argsort(-squares / nbytes, kind="stable")
    sums = np.cumsum(squares[order])
    enough = int(np.searchsorted(sums, wanted * (1 - 1e-12))) + 1
    ranks = np.bincount(owners[order[:enough]], minlength=len(spectra))
    return dict(zip(spectra, ranks.tolist(), strict=True))
