"""The least rank that keeps a fraction of the energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plastic_select.check import check_retained_energy
from plastic_select.rules.rule import CommonNumber, Rule, Spectrum
from plastic_select.spectrum import cumulative_energy, energy_rank, rank_at_energy


@dataclass(frozen=True)
class Energy(Rule):
    """The least rank that keeps ``retained_energy``: see ``energy_rank``.

    Several matrices under one budget keep the largest common fraction that meets it. Singular
    values that are not known count as zero.

    Attributes:
        retained_energy: Fraction of the energy in (0, 1]. None: as much as the budget permits.
            Several matrices have no larger fraction in common.

    Examples:
        >>> from plastic_select import choose_rank_from_spectrum
        >>> s = [3.0, 1.0, 0.5, 0.5, 0.5, 0.5]  # energies 9, 1 and four times 1/4
        >>> choose_rank_from_spectrum(s, (6, 12), 0.0, Energy(0.9)).rank
        2
        >>> choose_rank_from_spectrum(s, (6, 12), 0.0, Energy()).rank
        4
    """

    name = "energy"
    retained_energy: float | None = None

    def __post_init__(self) -> None:
        if self.retained_energy is not None:
            check_retained_energy(self.retained_energy)

    def wanted(self, spectrum: Spectrum, shape: tuple[int, int], budget: int) -> tuple[int, str]:
        """Return the least rank that keeps the fraction, or the budget rank."""
        if self.retained_energy is None:
            return budget, "all that the budget permits"
        every = np.pad(spectrum, (0, min(shape) - spectrum.size))
        rank = energy_rank(every, self.retained_energy)
        return rank, f"rank {rank} retains {self.retained_energy:.4g} of the energy"

    def common(self, spectra: Sequence[Spectrum], most: NDArray[np.int64]) -> CommonNumber:
        """Return the common fraction of the energy."""
        cumulative = [cumulative_energy(s) for s in spectra]
        return CommonNumber(
            ranks_at=lambda energy: np.array([rank_at_energy(c, energy) for c in cumulative]),
            largest=1.0 if self.retained_energy is None else self.retained_energy,
            reasons_at=lambda energy: (
                [f"{energy:.6g} of the energy, the common fraction"] * len(cumulative)
            ),
        )
