"""What a rule is: from a spectrum and a budget to a rank."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plastic_select.check import as_spectrum
from plastic_select.spectrum import energy_shares

Spectrum = NDArray[np.float64]


@dataclass(frozen=True)
class RankChoice:
    """A rank and what it costs.

    Attributes:
        rank: From 1 to ``min(m, n)``.
        retained_energy: Fraction of the sum of the squared singular values that the best
            approximation of that rank keeps, in [0, 1]; 1.0 for a zero matrix.
        relative_error: Its relative Frobenius error, ``sqrt(1 - retained_energy)``.
        strategy: The name of the rule that chose. Of a rule that needs a Gram both figures are
            about the output, ``A R^{1/2}``, and not about the weights.
        why: The reason, in one line.

    Examples:
        >>> from plastic_select import choose_rank
        >>> choice = choose_rank([[3.0, 0.0], [0.0, 1.0]], 0.0)
        >>> choice.rank, round(choice.retained_energy, 3), round(choice.relative_error, 3)
        (1, 0.9, 0.316)
        >>> choice.why
        '1 x stable rank 1.111, rounded up; budget rank 1'
    """

    rank: int
    retained_energy: float
    relative_error: float
    strategy: str
    why: str

    @classmethod
    def of(cls, spectrum: Spectrum, rank: int, strategy: str, why: str) -> RankChoice:
        """Return the choice of ``rank`` for a checked spectrum, with its energy and its error."""
        # Summed from the small end, so that a tiny error is not lost in 1 - retained_energy.
        lost = float(min(np.sum(energy_shares(spectrum)[rank:][::-1]), 1.0))
        return cls(rank, 1.0 - lost, math.sqrt(lost), strategy, why)


@dataclass(frozen=True)
class CommonNumber:
    """A number that several matrices have in common, for one budget to decide.

    Attributes:
        ranks_at: The rank of each matrix at a value of the number. Ranks grow with it.
        largest: The largest value that is allowed or of any use.
        reasons_at: Why each matrix has its rank, in one line, at the value that was taken.

    Examples:
        >>> import numpy as np
        >>> from plastic_select.rules import Energy
        >>> flat, steep = np.ones(8), 1.0 / np.arange(1, 9) ** 2
        >>> common = Energy().common([flat, steep], most=np.array([8, 8]))
        >>> common.ranks_at(0.75).tolist(), common.largest
        ([6, 1], 1.0)
    """

    ranks_at: Callable[[float], NDArray[np.number]]
    largest: float
    reasons_at: Callable[[float], list[str]]


@dataclass(frozen=True)
class Rule(ABC):
    """Reads a rank off a spectrum. A rule is a frozen dataclass of its own numbers.

    Attributes:
        name: What ``RankChoice.strategy`` and the table ``RULES`` call it.
        needs_gram: Whether it reads the spectrum of the output, ``A R^{1/2}``, for which the
            input Gram R must be known.

    Examples:
        >>> from dataclasses import dataclass
        >>> from plastic_select import choose_rank
        >>> @dataclass(frozen=True)
        ... class Half(Rule):
        ...     name = "half"
        ...
        ...     def wanted(self, spectrum, shape, budget):
        ...         return spectrum.size // 2, "half of the values"
        >>> choose_rank([[2.0, 0.0], [0.0, 1.0]], 0.0, Half()).why
        'half of the values; budget rank 1'
    """

    name: ClassVar[str]
    needs_gram: ClassVar[bool] = False

    @abstractmethod
    def wanted(self, spectrum: Spectrum, shape: tuple[int, int], budget: int) -> tuple[int, str]:
        """Return the rank that the rule asks for, and the reason in a few words.

        Args:
            spectrum: The largest singular values, non-increasing, as many as are known.
            shape: Shape ``(m, n)`` of the matrix.
            budget: The largest rank that fits the budget, at most the number of values. Ranks
                outside 1 to ``budget`` are allowed and are cut to it.
        """

    def common(self, spectra: Sequence[Spectrum], most: NDArray[np.int64]) -> CommonNumber | None:
        """Return the number by which several matrices share one budget; None: each by itself.

        Args:
            spectra: All ``min(m, n)`` singular values of each matrix.
            most: The greatest rank of each matrix.
        """
        return None

    def choose(self, spectrum: ArrayLike, shape: tuple[int, int], budget: int) -> RankChoice:
        """Choose the rank of one matrix from its spectrum, from 1 to ``budget``.

        Args:
            spectrum: The largest singular values, non-increasing, as many as are known.
            shape: Shape ``(m, n)`` of the matrix.
            budget: The largest rank allowed, from 1 to the number of values.

        Raises:
            TypeError: If the values are not real numbers.
            ValueError: If they are not a spectrum.
        """
        s = as_spectrum(spectrum)
        rank, reason = self.wanted(s, shape, budget)
        why = f"{reason}; budget rank {budget}"
        return RankChoice.of(s, max(1, min(rank, budget)), self.name, why)
