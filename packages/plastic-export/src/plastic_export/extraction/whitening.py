"""The norm in which a difference is measured and cut: the plain one, or that of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from plastic_core import Factors, GramRoot, factorized_lowrank, loss_factors, predicted_cost
from plastic_core.linalg import Float32, to_numpy

DAMPING = 0.01
"""Of the mean eigenvalue of a Gram: what its text did not show is still worth something."""
IDENTITY = GramRoot(None)
_TINY = float(np.finfo(np.float32).tiny)


class LeadingComponents(NamedTuple):
    """The leading components of a difference: the first k of them are the best of rank k.

    Attributes:
        B: Shape ``(m, r)``.
        A: Shape ``(r, n)``, every row as long as its column of B.
        values: Singular values in the norm that they were cut in, shape ``(r,)``.
        plain: Leading singular values of the difference itself, shape ``(r,)``.
        total: Sum of the squares of all singular values in that norm.
    """

    B: Float32
    A: Float32
    values: Float32
    plain: Float32
    total: float


@dataclass(frozen=True)
class Whitening:
    """Roots of the Grams of a layer; by default every direction counts alike.

    Attributes:
        inputs: Root of ``E[x x^T]``.
        outputs: Root of ``E[g g^T]`` over gradients at the outputs.
    """

    inputs: GramRoot = IDENTITY
    outputs: GramRoot = IDENTITY

    def components(self, D: Float32, norm: float, rank: int, seed: int) -> LeadingComponents:
        """Return the leading components of a difference.

        Args:
            D: The difference, shape ``(m, n)``.
            norm: Its Frobenius norm.
            rank: How many, from 1 on.
            seed: Decides all that is random.
        """
        plain = factorized_lowrank(D, rank, key=seed)
        if self.inputs is IDENTITY and self.outputs is IDENTITY:
            return _balanced(plain, plain, norm**2)
        roots = {"inputs": self.inputs, "outputs": self.outputs}
        total = 2 * predicted_cost(D, **roots)
        return _balanced(loss_factors(D, rank, **roots, key=seed), plain, total)


def _balanced(factors: Factors, plain: Factors, total: float) -> LeadingComponents:
    U, S, Vh = (to_numpy(factor) for factor in factors)
    A = S[:, None] * Vh
    of_U, of_A = np.linalg.norm(U, axis=0), np.linalg.norm(A, axis=1)
    ratio = np.sqrt(np.maximum(of_A, _TINY) / np.maximum(of_U, _TINY))
    singular = to_numpy(plain.S)
    return LeadingComponents(U * ratio, A / ratio[:, None], S, singular, total)
