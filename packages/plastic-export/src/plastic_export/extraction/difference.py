"""What one checkpoint has learnt beyond another in one matrix: its leading components."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from plastic_core.linalg import Float32, frobenius_norm

from plastic_export.extraction.pair import Pair
from plastic_export.extraction.rounding_noise import noise_edge
from plastic_export.extraction.whitening import LeadingComponents, Whitening


@dataclass(frozen=True)
class LayerDifference:
    """What was learnt in a matrix.

    Attributes:
        name: Name of the weight.
        shape: ``(out, in)``.
        relative: Frobenius norm of the change over that of the weight of the base.
        total: Sum of the squares of all its components, in the norm that they are cut in.
        values: Singular values in that norm, non-increasing, of leading components that stand out
            of the rounding of the stored weights.
        is_complete: Whether these are all that do.

    Examples:
        >>> change = LayerDifference("w", (4, 4), 0.1, 5.0, np.float32([2, 1]), True)
        >>> change.energy(1), change.energy(2)
        (4.0, 5.0)
    """

    name: str
    shape: tuple[int, int]
    relative: float
    total: float
    values: Float32
    is_complete: bool

    def energy(self, rank: int) -> float:
        """Return the sum of the squares of the leading components."""
        return math.fsum(self.values[:rank].astype(np.float64) ** 2)


def difference_of(pair: Pair, name: str) -> Float32:
    """Return ``tuned - base`` of a single matrix, float32.

    Raises:
        FormatError: If a weight cannot be read or is not finite.
    """
    ((before, after),) = pair.matrices(name)
    return np.subtract(after, before, out=after)


def change_of(
    pair: Pair, name: str, whitening: Whitening, rank: int, seed: int
) -> tuple[LayerDifference, LeadingComponents | None]:
    """Read the leading components of the change of a single matrix.

    Args:
        pair: Both checkpoints.
        name: Name of the weight.
        whitening: The norm in which components are cut.
        rank: How many components are computed.
        seed: Decides all that is random.

    Returns:
        What is known of it, and the components; None where nothing changed.

    Raises:
        FormatError: If a weight cannot be read or is not finite.
    """
    ((before, after),) = pair.matrices(name)
    of_base = frobenius_norm(before)
    D = np.subtract(after, before, out=before)
    norm, shape = frobenius_norm(D), pair.layers[name].shape
    if norm == 0.0:
        return LayerDifference(name, shape, 0.0, 0.0, np.zeros(0, np.float32), True), None
    edge = noise_edge(after, pair.tuned.specs[name].dtype, norm)
    del after
    rank = min(rank, *shape)
    found = whitening.components(D, norm, rank, seed)
    standing = int(np.count_nonzero(found.plain > edge))
    relative = norm / of_base if of_base else math.inf
    is_complete = standing < rank or rank == min(shape)
    return LayerDifference(
        name, shape, relative, found.total, found.values[:standing], is_complete
    ), found
