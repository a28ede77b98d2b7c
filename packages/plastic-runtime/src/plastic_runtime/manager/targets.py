"""The rank that a layer's own spectrum asks for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plastic_core import RankLayer, weighted_spectrum
from plastic_core.factors import as_arrays, balance, product_spectrum
from plastic_select import budget_rank
from plastic_select.rules import Rule, as_rule

RETAINED_ENERGY = 0.99  # what a rule given by its name keeps, if it keeps a fraction


@dataclass(frozen=True)
class RankTarget:
    """A rule that reads a rank off the spectrum of a plastic part.

    Attributes:
        rule: The rule that reads it. It sees the singular values of the plastic part alone, fewer
            than the matrix has; what it takes the others for, its docstring says.
        target_compression: Fraction in [0, 1) of a dense matrix's parameters that the factors
            must save: no target is above that budget. At 0, a rank at which a dense matrix would
            be smaller counts as too much.
    """

    rule: Rule
    target_compression: float = 0.0

    @classmethod
    def of(cls, strategy: str | Rule, target_compression: float = 0.0) -> RankTarget:
        """Return the target of a strategy's name or rule, after checking both numbers.

        Raises:
            ValueError: If there is no such rule, or ``target_compression`` is out of range.
        """
        target = cls(as_rule(strategy, retained_energy=RETAINED_ENERGY), target_compression)
        target.rank(np.ones(1), (1, 1))
        return target

    def rank(self, spectrum: NDArray[np.float64], shape: tuple[int, int]) -> int:
        """Return the rank asked for, from 1 to the number of values; 0 without any.

        Args:
            spectrum: The r singular values of the plastic part, non-increasing.
            shape: Shape ``(out, in)`` of the layer.
        """
        budget = min(len(spectrum), budget_rank(shape, self.target_compression))
        return self.rule.choose(spectrum, shape, budget).rank if budget else 0

    def as_json(self) -> dict[str, Any]:
        """Return the rule's name, its numbers and the budget, in JSON's types."""
        numbers = asdict(self.rule) | {"target_compression": self.target_compression}
        return {"strategy": self.rule.name, **numbers}


def plastic_spectrum(
    layer: RankLayer, *, gram: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Return the singular values of the plastic part, or of its output.

    Args:
        layer: The layer; not changed.
        gram: Input Gram ``E[x x^T]``, shape ``(in, in)``: the spectrum is then that of
            ``U diag(S) Vh R^{1/2}``.

    Returns:
        Shape ``(rank,)``, float64, non-negative, non-increasing. With a Gram it costs two thin
        QRs, without one two eigendecompositions of the order of the rank.
    """
    arrays = as_arrays(layer.factors())
    if gram is None or layer.rank == 0:
        return product_spectrum(*arrays)
    _, S, Vh = balance(*arrays)
    # U is orthonormal, so it does not change the singular values.
    return weighted_spectrum(S[:, None] * Vh, gram=gram)
