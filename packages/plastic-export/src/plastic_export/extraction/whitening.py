"""The norm in which a difference is measured and cut: the plain one, or that of a text."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from plastic_core import (
    GramRoot,
    factorized_lowrank,
    loss_factors,
    loss_spectrum,
    weighted_spectrum,
)
from plastic_core.linalg import Float32, Float64, to_numpy

DAMPING = 0.01
"""Of the mean eigenvalue of a Gram: what its text did not show is still worth something."""
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Whitening:
    """Roots of the Grams of a layer; without them every direction counts alike.

    Attributes:
        inputs: Root of ``E[x x^T]``; None for the identity.
        outputs: Root of ``E[g g^T]`` over gradients at the outputs; None for the identity.
    """

    inputs: GramRoot | None = None
    outputs: GramRoot | None = None

    @property
    def is_plain(self) -> bool:
        """Whether every direction counts alike."""
        return self.inputs is None and self.outputs is None

    def spectrum(self, D: Float32) -> Float64:
        """Return the singular values of ``C^(1/2) D R^(1/2)``, shape ``(min(m, n),)``."""
        if self.is_plain:
            return weighted_spectrum(D)
        return loss_spectrum(D, inputs=_root(self.inputs), outputs=_root(self.outputs))

    def components(self, D: Float32, rank: int, seed: int) -> tuple[Float32, Float32]:
        """Return the best ``B (m, r)`` and ``A (r, n)``, every row of A as long as its column of B.

        The leading ``k`` of both are the best of rank ``k``.

        Args:
            D: The difference, shape ``(m, n)``.
            rank: The number of components, from 1 on.
            seed: Decides all that is random.
        """
        if self.is_plain:
            factors = factorized_lowrank(D, rank, key=seed)
        else:
            roots = {"inputs": _root(self.inputs), "outputs": _root(self.outputs)}
            factors = loss_factors(D, rank, **roots, key=seed)
        U, S, Vh = (to_numpy(factor.astype(mx.float32)) for factor in factors)
        A = S[:, None] * Vh
        long, wide = (
            np.maximum(np.linalg.norm(side, axis=i), _TINY) for i, side in enumerate((U, A))
        )
        ratio = np.sqrt(wide / long)
        return U * ratio, A / ratio[:, None]


def _root(root: GramRoot | None) -> GramRoot:
    return GramRoot(None) if root is None else root
