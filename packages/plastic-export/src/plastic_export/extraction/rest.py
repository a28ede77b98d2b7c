"""What of a difference is no matrix beside which an adapter could lie: kept beside it, or named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from plastic_core.linalg import Float32, squared_norm

from plastic_export.extraction.pair import Pair


@dataclass(frozen=True)
class LeftOut:
    """A tensor that changed and is in no adapter.

    Attributes:
        name: Its name in mlx-lm's model.
        shape: Its shape; of a stack of experts, that of one matrix.
        relative: Norm of its change over the norm that it had.
        kept: Whether the file beside the adapters holds what became of it.

    Examples:
        >>> LeftOut("model.norm.weight", (64,), 0.02, kept=True).kept
        True
    """

    name: str
    shape: tuple[int, ...]
    relative: float
    kept: bool


@dataclass(frozen=True)
class Rest:
    """All that changed and is in no adapter.

    Attributes:
        left: What it is, in the order of the checkpoint.
        tensors: What became of those that are kept, in the type in which they were stored.
    """

    left: Sequence[LeftOut]
    tensors: dict[str, mx.array]


def rest_of(pair: Pair, layers: Sequence[str]) -> Rest:
    """Read what changed outside the matrices that an adapter is made of.

    Norms, biases and other parameters are kept as they became; of embeddings, routers and stacks of
    experts it is only told how much they changed.

    Args:
        pair: Both checkpoints.
        layers: Names of the weights of those other layers.

    Raises:
        FormatError: If one cannot be read or is not finite.
    """
    left, tensors = list[LeftOut](), dict[str, mx.array]()
    for name in layers:
        change = norm = 0.0
        for before, after in pair.matrices(name):
            norm += squared_norm(before)
            change += squared_norm(np.subtract(after, before, out=after))
        if change:
            shape = pair.layers[name].shape
            left.append(LeftOut(name, shape, _ratio(change, norm), kept=False))
    for name in pair.others:
        before, after = pair.values(name)
        if change := _square(after - before):
            left.append(LeftOut(name, after.shape, _ratio(change, _square(before)), kept=True))
            tensors[name] = pair.stored(name, after)
    return Rest(left, tensors)


def _square(values: Float32) -> float:
    return squared_norm(values.reshape(1, -1))


def _ratio(change: float, norm: float) -> float:
    return math.sqrt(change / norm) if norm else math.inf
