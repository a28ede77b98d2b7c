"""The loss whose gradients are the Fisher information: labels drawn from the model itself."""

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn


def keys(seed: int) -> Iterator[mx.array]:
    """Yield the keys split off ``mx.random.key(seed)`` one after the other: one per batch."""
    key = mx.random.key(seed)
    while True:
        key, drawn = mx.random.split(key)
        yield drawn


def sampled_loss(logits: mx.array, key: mx.array) -> mx.array:
    """Negative log-likelihood, in float32, of labels drawn from ``logits``, over all positions."""
    logits = logits.astype(mx.float32)
    labels = mx.random.categorical(mx.stop_gradient(logits), key=key)
    return nn.losses.cross_entropy(logits, labels, reduction="sum")
