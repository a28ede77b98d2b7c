"""The percentiles of a number that every token has."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

PERCENTS = (0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Distribution:
    """How a number is distributed over tokens.

    Attributes:
        tokens: How many there are.
        least: The smallest number.
        most: The largest.
        percentiles: The number that this percentage of the tokens does not exceed, by percentage;
            None where `needed_tokens` says that there are too few.

    Examples:
        >>> found = Distribution.of(np.arange(101.0))
        >>> found.median, found.percentiles[99.0], found.percentiles[99.9], found.most
        (50.0, 99.0, None, 100.0)
    """

    tokens: int
    least: float
    most: float
    percentiles: dict[float, float | None]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Distribution:
        """Return the distribution of numbers of any shape, at least one, none of them NaN."""
        ordered = np.sort(values, axis=None)
        found = {
            percent: _at(ordered, percent / 100) if _is_known(percent, len(ordered)) else None
            for percent in PERCENTS
        }
        return cls(len(ordered), float(ordered[0]), float(ordered[-1]), found)

    @property
    def median(self) -> float | None:
        """The number in the middle, None of a single token."""
        return self.percentiles[50.0]


def needed_tokens(percent: float) -> int:
    """Return how many tokens a percentile needs, so that one of them lies beyond it.

    Args:
        percent: More than 0 and less than 100.

    Examples:
        >>> needed_tokens(99.9), needed_tokens(50)
        (1000, 2)
    """
    return round(100 / min(percent, 100 - percent))


def _is_known(percent: float, tokens: int) -> bool:
    return tokens >= needed_tokens(percent)


def _at(ordered: NDArray[np.float64], share: float) -> float:
    """Interpolate between neighbours, as llama.cpp and NumPy do, past infinite ones too."""
    place = share * (len(ordered) - 1)
    below = floor(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    part = place - below
    return low if part == 0 or low == high else low + part * (high - low)
