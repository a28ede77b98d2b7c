"""The rank that a layer's own spectrum asks for."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import RankLayer, weighted_spectrum
from plastic_select import budget_rank, choose_rank_from_spectrum, theorem_rank

STRATEGIES = ("activation", "stable", "theorem")


@dataclass(frozen=True)
class Target:
    """How to read a rank off the spectrum of a plastic part.

    Attributes:
        strategy: ``"stable"``: ``multiple`` times the stable rank, rounded up. ``"theorem"``: the
            gap that stands out, as in ``plastic_select.theorem_rank``; none, no shrink.
            ``"activation"``: the least rank that retains ``retained_energy`` of the energy of
            the layer's output, read off the spectrum under its input Gram.
        multiple: Positive factor of the stable rank.
        retained_energy: Fraction in (0, 1].
        target_compression: Fraction in [0, 1) of a dense matrix's parameters that the factors
            must save: no target is above that budget. At 0, a rank at which a dense matrix would
            be smaller counts as too much.
    """

    strategy: str = "stable"
    multiple: float = 1.0
    retained_energy: float = 0.99
    target_compression: float = 0.0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            names = ", ".join(map(repr, STRATEGIES))
            raise ValueError(f"`strategy` must be one of {names}, got {self.strategy!r}.")
        self.rank(np.ones(1), (1, 1))

    def rank(self, spectrum: NDArray[np.float64], shape: tuple[int, int]) -> int:
        """Return the rank asked for, from 1 to the number of values; 0 without any.

        Args:
            spectrum: The r singular values of the plastic part, non-increasing.
            shape: Shape ``(out, in)`` of the layer.

        Raises:
            ValueError: If a number of the strategy is out of range.
        """
        present = len(spectrum)
        budget = min(present, budget_rank(shape, self.target_compression))
        if present == 0:
            return 0
        if self.strategy == "theorem":
            return _gap(spectrum, budget)
        padded = np.pad(spectrum, (0, min(shape) - present))
        if self.strategy == "stable":
            choice = choose_rank_from_spectrum(padded, shape, 0.0, "stable", multiple=self.multiple)
        else:
            choice = choose_rank_from_spectrum(
                padded, shape, 0.0, "energy", retained_energy=self.retained_energy
            )
        return min(choice.rank, budget)


def plastic_spectrum(
    layer: RankLayer, *, gram: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Return the singular values of the plastic part, or of its output.

    Args:
        layer: The layer; not changed.
        gram: Input Gram ``E[x x^T]``, shape ``(in, in)``: the spectrum is then that of
            ``U diag(S) Vh R^{1/2}``.

    Returns:
        Shape ``(rank,)``, float64, non-negative, non-increasing. Costs two thin QRs.
    """
    factors = layer.balanced()[0]
    S = np.array(factors.S.astype(mx.float32), dtype=np.float64)
    if gram is None or S.size == 0:
        return S
    # U is orthonormal, so it does not change the singular values.
    return weighted_spectrum(S[:, None] * np.array(factors.Vh.astype(mx.float32)), gram=gram)


def _gap(spectrum: NDArray[np.float64], budget: int) -> int:
    """The theorem's rank at or below the budget.

    What may follow the last value is taken to be as large: no gap is seen that is not there.
    """
    followed = np.append(spectrum, spectrum[-1])[: budget + 1]
    # Of a matrix of this shape, `budget` is exactly the break-even rank.
    return theorem_rank(followed, (budget + 1, budget * (budget + 1)), 0.0)
