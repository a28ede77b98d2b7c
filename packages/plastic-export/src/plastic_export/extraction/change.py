"""What one checkpoint has learnt beyond another in one matrix: its spectrum, and what is noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from plastic_core import weighted_spectrum
from plastic_core.linalg import Float32, Float64, frobenius_norm

from plastic_export.extraction.pair import Pair
from plastic_export.extraction.rounding_noise import noise_edge
from plastic_export.extraction.whitening import Whitening


@dataclass(frozen=True)
class Change:
    """What was learnt in a matrix.

    Attributes:
        name: Name of the weight.
        shape: ``(out, in)``.
        relative: Frobenius norm of the change over that of the weight of the base.
        total: Sum of the squares of all its components, in the norm that they are cut in.
        values: Singular values in that norm, non-increasing: of as many components as stand out
            of the rounding of the stored weights.
    """

    name: str
    shape: tuple[int, int]
    relative: float
    total: float
    values: Float64

    def energy(self, rank: int) -> float:
        """Return the sum of the squares of the leading components."""
        return float(np.sum(self.values[:rank] ** 2))


def difference_of(pair: Pair, name: str) -> Float32:
    """Return ``tuned - base`` of a single matrix, float32.

    Raises:
        FormatError: If a weight cannot be read or is not finite.
    """
    ((before, after),) = pair.matrices(name)
    return np.subtract(after, before, out=after)


def change_of(pair: Pair, name: str, whitening: Whitening) -> Change:
    """Measure the change of a single matrix; at most three of its size are in memory.

    Args:
        pair: Both checkpoints.
        name: Name of the weight.
        whitening: The norm in which components are cut.

    Raises:
        FormatError: If a weight cannot be read or is not finite.
    """
    ((before, after),) = pair.matrices(name)
    of_base = frobenius_norm(before)
    D = np.subtract(after, before, out=before)
    norm = frobenius_norm(D)
    shape = pair.layers[name].shape
    if norm == 0.0:
        return Change(name, shape, 0.0, 0.0, np.zeros(0))
    edge = noise_edge(after, _stored_type(pair, name), norm)
    del after
    plain = weighted_spectrum(D)
    standing = int(np.count_nonzero(plain > edge))
    values = plain if whitening.is_plain else whitening.spectrum(D)
    relative = norm / of_base if of_base else float("inf")
    return Change(name, shape, relative, float(np.sum(values**2)), values[:standing])


def _stored_type(pair: Pair, name: str) -> str:
    """Return the type that the tuned weight was rounded to; packed ones are known exactly."""
    layer = pair.tuned.layers[name]
    return pair.tuned.specs[layer.name].dtype
