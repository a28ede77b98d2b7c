"""A multiple of the stable rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plastic_select.check import check_number
from plastic_select.rules.rule import CommonNumber, Rule, Spectrum
from plastic_select.spectrum import stable_rank_of_spectrum


@dataclass(frozen=True)
class Stable(Rule):
    """The rule that takes ``multiple`` times the stable rank, rounded up (heuristic).

    A hundredth is not rounded up, so that a projector with a little noise keeps its rank. Several
    matrices under one budget have the largest common multiple that meets it.

    Attributes:
        multiple: Positive and finite. None: 1 for a matrix by itself, and what the budget permits
            for several. These have no larger multiple than a number that is given.

    Examples:
        >>> from plastic_select import choose_rank_from_spectrum
        >>> s = [3.0, 2.0, 1.0, 1.0, 1.0, 1.0]  # stable rank 17 / 9
        >>> choose_rank_from_spectrum(s, (6, 12), 0.0, Stable()).rank
        2
        >>> choose_rank_from_spectrum(s, (6, 12), 0.0, Stable(1.5)).rank
        3
    """

    name = "stable"
    multiple: float | None = None

    def __post_init__(self) -> None:
        if self.multiple is not None:
            check_number("multiple", self.multiple)
        if self.multiple is not None and not 0 < self.multiple < math.inf:
            raise ValueError(f"`multiple` must be positive and finite, got {self.multiple}.")

    def wanted(self, spectrum: Spectrum, shape: tuple[int, int], budget: int) -> tuple[int, str]:
        """Return the multiple of the stable rank, rounded up."""
        stable = stable_rank_of_spectrum(spectrum)
        multiple = 1.0 if self.multiple is None else self.multiple
        rank = int(_rounded_up(min(multiple * stable, spectrum.size)))
        return rank, f"{multiple:.4g} x stable rank {stable:.4g}, rounded up"

    def common(self, spectra: Sequence[Spectrum], most: NDArray[np.int64]) -> CommonNumber:
        """Return the common multiple of the stable ranks."""
        stable = np.array([stable_rank_of_spectrum(s) for s in spectra])
        enough = float(np.max(most / np.maximum(stable, 1.0)))
        return CommonNumber(
            ranks_at=lambda multiple: _rounded_up(multiple * stable),
            largest=enough if self.multiple is None else min(self.multiple, enough),
            reasons_at=lambda multiple: [
                f"{multiple:.4g} x stable rank {x:.4g}, the common multiple" for x in stable
            ],
        )


def _rounded_up(rank: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Round up from ``rank - 0.01``, so that noise on a flat spectrum adds no component."""
    return np.ceil(np.asarray(rank) - 0.01)
