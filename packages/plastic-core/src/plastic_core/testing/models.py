"""Random arrays, and what a model holds, to be compared to the bit."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from plastic_core.testing.known_spectra import bits


def gaussian(rng: np.random.Generator, *shape: int) -> mx.array:
    """Return a random array of standard normal entries, float32.

    Examples:
        >>> gaussian(np.random.default_rng(0), 2, 3).shape
        (2, 3)
    """
    return mx.array(rng.standard_normal(shape).astype(np.float32))


def parameters(model: nn.Module) -> dict[str, mx.array]:
    """Return the parameters of a model by their names.

    Examples:
        >>> list(parameters(nn.Sequential(nn.Linear(2, 3, bias=False))))
        ['layers.0.weight']
    """
    flat: Any = tree_flatten(model.parameters())  # type: ignore[no-untyped-call]
    return dict(flat)


def same_bits(a: mx.array, b: mx.array) -> bool:
    """Return whether two arrays agree in dtype, shape and every bit.

    Examples:
        >>> same_bits(mx.array([0.0]), mx.array([-0.0]))
        False
    """
    return (a.dtype, a.shape) == (b.dtype, b.shape) and bits(a) == bits(b)
