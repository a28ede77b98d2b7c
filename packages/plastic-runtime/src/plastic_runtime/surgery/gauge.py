r"""The gauge in which a plastic part is written while an optimizer trains it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from plastic_core import Factors, RankLayer
from plastic_core.factors import Arrays, balance


@dataclass(frozen=True)
class Gauge:
    r"""The choice among all ways to write one weight as ``U diag(S) Vh``.

    The weight is the same in each, but not what training does next: Adam moves an entry by about
    the learning rate, so the weight moves by that times ``S`` and the length of the rows of
    ``Vh``. In this gauge

    .. math::

        S_i = \frac{\text{scale}}{\sqrt{r}}, \qquad V_h V_h^T = \text{length}^2 \, I ,

    and ``U`` carries the spectrum. New components have ``U = 0``: they change nothing, and ``U``
    has a gradient at once, where ``S = 0`` would let the directions wait for ``S``. A rank
    that changes keeps the size of a step, which LoRA's fixed scale does not.

    Attributes:
        scale: The layer's scale, above 0. LoRA of rank r and scale a has ``a * sqrt(r)``.
        length: The length of a row of ``Vh``, above 0. By default the root mean square length of
            the rows that LoRA starts from, uniform in :math:`\pm 1 / \sqrt{n}`.

    References:
        Division by the root of the rank: Kalajdzievski, *A rank stabilization scaling factor for
        fine-tuning with LoRA*, 2023, arXiv 2312.03732, theorem 3.2.

    Examples:
        >>> Gauge(scale=2.0).weight(rank=4)
        1.0
    """

    scale: float = 20.0 * math.sqrt(8.0)
    length: float = 1.0 / math.sqrt(3.0)

    def __post_init__(self) -> None:
        for name in ("scale", "length"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"`{name}` must be above 0, got {value}.")

    def weight(self, rank: int) -> float:
        """Return ``S`` of every component of a layer of this rank."""
        return self.scale / math.sqrt(max(rank, 1))

    def fresh(self, layer: RankLayer, Vh: mx.array, rank: int) -> Factors:
        """Return components that change nothing, along the orthonormal rows ``Vh``.

        Args:
            layer: The layer they are for.
            Vh: Shape ``(k, in)``.
            rank: The rank of the layer with them.
        """
        k, dtype = len(Vh), layer.U.dtype
        U = mx.zeros((layer.shape[0], k), dtype)
        S = mx.full((k,), self.weight(rank), dtype)
        return Factors(U, S, (Vh.astype(mx.float32) * self.length).astype(dtype))

    def written(self, factors: Arrays) -> Arrays:
        """Return the same weight in this gauge, its components in the order of the spectrum.

        Args:
            factors: ``U (out, r)``, ``S (r,)``, ``Vh (r, in)``, any.
        """
        return self.scaled(balance(*factors))

    def scaled(self, factors: Arrays) -> Arrays:
        """Return the same components, one by one, with the ``S`` and the lengths of this gauge."""
        U, S, Vh = factors
        lengths = np.maximum(np.linalg.norm(Vh, axis=1), np.finfo(np.float32).tiny)
        weight = self.weight(len(S))
        left = U * (S * lengths / (weight * self.length))
        right = Vh * (self.length / lengths)[:, None]
        return left, np.full(len(S), weight, np.float32), right
