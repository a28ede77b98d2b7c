"""The loss whose gradients are the Fisher information: labels drawn from the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg
from plastic_core.linalg import Float32, Float64

SPAN = 256  # neighbouring probabilities that are added up before a label is looked for
ROWS = 16  # positions at a time, for a large vocabulary to stay in the cache


def draws(seed: int) -> Iterator[np.random.Generator]:
    """Yield what draws the labels of one batch after the other: Philox, keyed by seed and batch."""
    for batch in count():
        key = np.array([seed % 2**64, batch], np.uint64)
        yield np.random.Generator(np.random.Philox(key=key))


def sampled_loss(logits: mx.array, draw: np.random.Generator) -> mx.array:
    """Negative log-likelihood of labels drawn from ``logits (..., vocabulary)``, over all of them.

    Each position takes one number of ``draw``: its label is where the cumulative probability
    exceeds it. Where MLX computes on the CPU, where sampling takes it longer than a pass through a
    small model, NumPy finds the label and the gradient, and the value is not computed: it is 0.
    """
    uniform = draw.random(logits.shape[:-1])
    if not linalg.on_cpu():
        logits = logits.astype(mx.float32)
        return nn.losses.cross_entropy(logits, mlx_labels(logits, uniform), reduction="sum")

    @mx.custom_function
    def loss(logits: mx.array) -> mx.array:
        return mx.array(0.0)

    @loss.vjp
    def backward(logits: mx.array, gradient: mx.array, _: mx.array) -> mx.array:
        rows = linalg.to_numpy(logits).reshape(-1, logits.shape[-1])
        residuals = sampled_residuals(rows, uniform.ravel())
        return gradient * mx.array(residuals).reshape(logits.shape)

    return cast(mx.array, loss(logits.astype(mx.float32)))


def mlx_labels(logits: mx.array, uniform: Float64) -> mx.array:
    """Return the labels at these cumulative probabilities, ``(...)``, of ``(..., vocabulary)``."""
    p = mx.softmax(mx.stop_gradient(logits.astype(mx.float32)), axis=-1)
    cumulative = mx.cumsum(p, axis=-1)
    threshold = mx.array(uniform.astype(np.float32))[..., None] * cumulative[..., -1:]
    return (cumulative < threshold).sum(axis=-1)


def sampled_residuals(logits: Float32, uniform: Float64) -> Float32:
    """Return ``p - e`` of softmax probabilities p and the unit vectors e of drawn labels.

    Args:
        logits: Shape ``(n, vocabulary)``.
        uniform: The cumulative probabilities at which the labels are, in [0, 1), shape ``(n,)``.
    """
    residuals = np.empty_like(logits)

    def fill(rows: slice) -> None:
        z, p = logits[rows], residuals[rows]
        np.subtract(z, z.max(axis=1, keepdims=True), out=p)
        np.exp(p, out=p)
        labels, totals = _labels(p, uniform[rows])
        p /= totals[:, None].astype(np.float32)
        p[np.arange(len(p)), labels] -= 1

    linalg.in_threads(fill, [slice(i, i + ROWS) for i in range(0, len(logits), ROWS)])
    return residuals


def _labels(p: Float32, uniform: Float64) -> tuple[NDArray[np.intp], Float64]:
    """Return the labels, and the sums of ``p (n, vocabulary)``, which is not normalised.

    Sums of spans first: a cumulative sum of all would take longer than the exponentials.
    """
    size, rows = p.shape[1], np.arange(len(p))
    spans = np.cumsum(np.add.reduceat(p, np.arange(0, size, SPAN), axis=1), axis=1, dtype=float)
    threshold = uniform * spans[:, -1]
    span = np.minimum((spans <= threshold[:, None]).sum(axis=1), spans.shape[1] - 1)
    before = np.where(span > 0, spans[rows, span - 1], 0.0)
    places = SPAN * span[:, None] + np.arange(SPAN)
    inside = np.where(places < size, p[rows[:, None], np.minimum(places, size - 1)], 0)
    passed = np.cumsum(inside, axis=1, dtype=float) <= (threshold - before)[:, None]
    # Sums of another order may leave a threshold beyond the last of the span.
    last = SPAN - 1 - np.argmax(inside[:, ::-1] > 0, axis=1)
    return SPAN * span + np.minimum(passed.sum(axis=1), last), spans[:, -1]
