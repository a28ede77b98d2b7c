"""What the base predicts on text that is not trained on, as a part of the loss of every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from plastic_core import RankLayer
from plastic_runtime import Track, untracked

from plastic_export.process.interruption import between

LIKELIEST = 64
"""Tokens whose probabilities are kept at every position; the others count as one."""
LEAST = 1e-6  # probability that float32 tells from none, as 1 less a sum

Loss = Callable[..., tuple[mx.array, mx.array]]
"""Takes the model and what a batch holds; returns the loss and the number of tokens learned."""


class Known(NamedTuple):
    """A window of text, and what the base predicts at each of its positions.

    Attributes:
        tokens: Shape (1, length).
        likeliest: The tokens that the base holds for likeliest, shape (1, length, k).
        log_q: Their log-probabilities, float32, of the same shape.
        log_rest: The log-probability of all other tokens together, float32, shape (1, length).
    """

    tokens: mx.array
    likeliest: mx.array
    log_q: mx.array
    log_rest: mx.array


class Remembering:
    r"""A term of the loss that holds a model to its base on text that is not trained on.

    .. math::

        \text{loss} + \text{weight} \cdot \mathrm{KL}(\text{base} \,\|\, \text{model})

    The divergence is the mean over the positions of one window per step, nats per token. Tokens
    that the base holds for unlikely count as one, which makes it smaller (the chain rule of the
    divergence): by a fifth with 64 of 2,048 tokens, which have 0.84 to 0.89 of the probability, and
    by a fifth to a quarter with 64 of 49,152, which have 0.86 (SmolLM2-135M).

    The base is the model with every plastic part turned off. It runs once per window; what is kept
    takes 8 bytes per position and token kept, 128 KiB for a window of 256.

    Args:
        model: The model, its layers in place.
        layers: The layers by path.
        windows: Token ids, shape (windows, length).
        weight: Nats of loss per nat of divergence, above 0.
        seed: The seed of the order of the windows.
        track: Wraps the passes of the base.

    References:
        Distillation from the model as it was, on inputs of any kind: Li and Hoiem, *Learning
        without forgetting*, arXiv 1606.09282. A penalty on the divergence from the model that a
        fine-tuning begins with: Jaques et al., *Sequence tutor*, arXiv 1611.02796.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, RankLayer],
        windows: mx.array,
        *,
        weight: float,
        seed: int,
        track: Track = untracked,
    ) -> None:
        self._weight, self._seed = weight, seed
        rows = between(track([row[None] for row in windows], "reading the base"))
        with _turned_off(model, layers):
            self._known = [know(row, model(row)) for row in rows]

    def window(self, step: int) -> Known:
        """Return the window of a step: a function of its number alone.

        Every window comes once before any comes again.
        """
        round_, place = divmod(step, len(self._known))
        order = np.random.default_rng([self._seed, round_]).permutation(len(self._known))
        return self._known[int(order[place])]

    def beside(self, loss: Loss) -> Loss:
        """Return a loss with the term beside it, for batches that end with a `Known`.

        Its value is that of ``loss``, its gradient that of the sum.
        """

        def both(model: nn.Module, *batch: mx.array) -> tuple[mx.array, mx.array]:
            task, known = batch[: -len(Known._fields)], Known(*batch[-len(Known._fields) :])
            value, tokens = loss(model, *task)
            term = self._weight * divergence_from_known(known, model(known.tokens))
            return value + (term - mx.stop_gradient(term)), tokens

        return both


def divergence_from_known(known: Known, logits: mx.array) -> mx.array:
    """Return KL(base || model) in nats per token, the unlikely tokens taken as one.

    Args:
        known: What the base predicts.
        logits: What the model predicts, shape (1, length, vocabulary).
    """
    log_p = mx.take_along_axis(_log_softmax(logits), known.likeliest, axis=-1)
    likeliest = (mx.exp(known.log_q) * (known.log_q - log_p)).sum(axis=-1)
    rest = mx.exp(known.log_rest) * (known.log_rest - _log_rest(log_p))
    return (likeliest + rest).mean()


def know(tokens: mx.array, logits: mx.array) -> Known:
    """Return what logits say of a window, the smaller of vocabulary and `LIKELIEST` tokens kept.

    Args:
        tokens: Shape (1, length).
        logits: Shape (1, length, vocabulary).
    """
    log_q = _log_softmax(logits)
    k = min(LIKELIEST, log_q.shape[-1])
    likeliest = mx.argpartition(-log_q, k - 1, axis=-1)[..., :k]
    log_q = mx.take_along_axis(log_q, likeliest, axis=-1)
    known = Known(tokens, likeliest, log_q, _log_rest(log_q))
    mx.eval(known)
    return known


@contextmanager
def _turned_off(model: nn.Module, layers: Mapping[str, RankLayer]) -> Iterator[None]:
    """Make the model its base within the block: every plastic part is turned off."""
    kept = [(layer, layer.factors()) for layer in layers.values()]
    try:
        for layer, (U, S, Vh) in kept:
            layer.set_factors(U, mx.zeros_like(S), Vh)
        model.eval()
        yield
    finally:
        model.train()
        for layer, factors in kept:
            layer.set_factors(*factors)


def _log_softmax(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _log_rest(log_p: mx.array) -> mx.array:
    """Return the logarithm of what probabilities leave, and of `LEAST` where that is less."""
    return mx.log(mx.maximum(1 - mx.exp(log_p).sum(axis=-1), LEAST))
