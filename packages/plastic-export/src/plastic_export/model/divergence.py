"""Log-probabilities and the Kullback-Leibler divergence, in NumPy or in MLX.

Where MLX computes on the CPU its ``exp`` takes six times as long as NumPy's, so NumPy goes over the
logits there. The formulas are the same for both.
"""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np
from plastic_core import linalg
from plastic_core.linalg import on_cpu


def library() -> Any:
    """Return what computes functions of logits, ``numpy`` or ``mlx.core``: names are the same."""
    return np if on_cpu() else mx


def in_library(array: mx.array, xp: Any) -> Any:
    """Return an array as one of the library ``xp``."""
    return linalg.to_numpy(array) if xp is np else array


def log_softmax_in(xp: Any, logits: Any) -> Any:
    """Return ``x - log sum exp x`` along the last axis, of an array of the library ``xp``."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))


def divergence_in(xp: Any, q: Any, log_q: Any, log_p: Any) -> Any:
    """Return ``sum q (log q - log p)`` along the last axis, where 0 log 0 is 0."""
    with np.errstate(invalid="ignore"):  # infinity less infinity, where q is 0
        return xp.where(q == 0, 0, q * (log_q - log_p)).sum(axis=-1)


def log_softmax(logits: mx.array) -> mx.array:
    """Return the normalised log-probabilities along the last axis of float32.

    Examples:
        >>> log_p = log_softmax(mx.array([0.0, 1.0, 2.0]))
        >>> print(f"{mx.exp(log_p).sum().item():.5f}")
        1.00000
    """
    xp = library()
    return mx.array(log_softmax_in(xp, in_library(logits, xp)))


def divergences(logits: mx.array, log_q: mx.array) -> mx.array:
    """Return KL(q || p) at every position, p given by its logits, differentiable in these alone.

    Args:
        logits: Shape ``(..., vocabulary)``, any floating dtype.
        log_q: Normalised log-probabilities, float32, of the same shape.

    Returns:
        Shape ``(...)``, float32, nats. The gradient in the logits is ``p - q``.

    Examples:
        >>> log_q = log_softmax(mx.array([[0.0, 1.0, 2.0]]))
        >>> divergences(mx.array([[0.0, 1.0, 2.0]]), log_q).tolist()
        [0.0]
    """
    xp = library()
    difference: list[Any] = []  # p - q, from the pass forwards

    @mx.custom_function
    def kl(logits: mx.array) -> mx.array:
        lq = in_library(log_q, xp)
        lp = log_softmax_in(xp, in_library(logits.astype(mx.float32), xp))
        q = xp.exp(lq)
        difference.append(xp.exp(lp) - q)
        return mx.array(divergence_in(xp, q, lq, lp))

    @kl.vjp
    def backward(logits: mx.array, gradient: mx.array, _: mx.array) -> mx.array:
        scale = in_library(gradient, xp)[..., None]
        return mx.array(scale * difference.pop()).astype(logits.dtype)

    return cast(mx.array, kl(logits))
