"""Predictions of a model for windows of tokens, by itself and against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_runtime import Track

from plastic_export.model.divergence import divergence_in, in_library, library, log_softmax_in
from plastic_export.model.numpy_attention import use_numpy_attention

LOGITS = 2**23  # at most so many logits of one model at a time, unless one window has more
ROWS = 8  # and at most so many windows

Batch = tuple[int, int]
LogProbabilities = list[NDArray[np.float32]] | list[mx.array]
"""One array per window, float32, of shape (tokens, vocabulary)."""


class Windows(NamedTuple):
    """A text as windows of tokens.

    Attributes:
        text: What it is called.
        tokens: Shape (windows, tokens).
    """

    text: str
    tokens: mx.array


class Reference:
    """The model that others are compared with; its log-probabilities, once they are computed.

    Args:
        model: It stays in memory.
        room: Bytes of log-probabilities that are held for the next model to be compared. What
            does not fit is computed again for each.
        vocabulary: See `measure_texts`.
    """

    def __init__(self, model: nn.Module, *, room: int, vocabulary: int | None = None) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._room = room
        self._held: dict[Batch, LogProbabilities] = {}

    def __call__(self, batch: Batch, tokens: mx.array) -> LogProbabilities:
        """Return log-probabilities of what follows each token.

        Args:
            batch: What tells these tokens from all others.
            tokens: Shape (windows, tokens).
        """
        if batch in self._held:
            return self._held[batch]
        log_q = log_probabilities(self._model, tokens, self._vocabulary)
        nbytes = sum(window.nbytes for window in log_q)
        if nbytes <= self._room:
            self._held[batch] = log_q
            self._room -= nbytes
        return log_q


def measure_texts(
    model: nn.Module,
    texts: Sequence[Windows],
    reference: Reference | None,
    track: Track,
    *,
    vocabulary: int | None = None,
) -> list[NDArray[np.float64]]:
    """Run a model over windows of several texts.

    Args:
        model: Maps tokens to logits.
        texts: Texts of the same model's tokens.
        reference: What to compare with.
        track: Wraps the loop over the batches of a text.
        vocabulary: How many tokens take part, the rest being padding; by default all.

    Returns:
        For each text the mean within each window, shape (measures, windows): negative
        log-likelihood and, with a reference, KL(reference || model), both in nats per token, and
        the fraction of tokens where both hold the same next token to be the likeliest.

    Raises:
        ValueError: If the vocabulary of the reference has another size.
    """
    width = model(mx.zeros((1, 1), mx.int32)).shape[-1]
    measured = []
    for number, (text, tokens) in enumerate(texts):
        rows = rows_at_once(tokens.shape[1], width)
        starts = track(range(0, len(tokens), rows), f"reading {text}")
        parts = [
            _measure_batch(
                model, reference, (number, start), tokens[start : start + rows], vocabulary
            )
            for start in starts
        ]
        measured.append(np.hstack(parts))
    return measured


def rows_at_once(length: int, width: int) -> int:
    """Return how many windows of ``length`` tokens, with ``width`` logits each, run at a time."""
    return min(ROWS, max(1, LOGITS // (length * width)))


def log_probabilities(
    model: nn.Module, tokens: mx.array, vocabulary: int | None = None
) -> LogProbabilities:
    """Return the log-probabilities of what follows each token, shape (windows, tokens).

    Args:
        model: Maps tokens to logits.
        tokens: Shape (windows, tokens).
        vocabulary: How many tokens may follow; by default all that the model has logits for.
    """
    with use_numpy_attention():
        return log_probabilities_of(model(tokens), vocabulary)


def log_probabilities_of(logits: mx.array, vocabulary: int | None = None) -> LogProbabilities:
    """Return the log-probabilities that logits mean; see `log_probabilities`."""
    logits = logits[..., :vocabulary].astype(mx.float32)
    mx.eval(logits)
    xp = library()
    return [log_softmax_in(xp, in_library(window, xp)) for window in logits]


def _measure_batch(
    model: nn.Module,
    reference: Reference | None,
    batch: Batch,
    tokens: mx.array,
    vocabulary: int | None,
) -> NDArray[np.float64]:
    log_p = log_probabilities(model, tokens[:, :-1], vocabulary)
    log_q = None if reference is None else reference(batch, tokens[:, :-1])
    return measures_of(tokens, log_p, log_q)


@np.errstate(invalid="ignore")  # what is not finite shows in the measures
def measures_of(
    tokens: mx.array, log_p: LogProbabilities, log_q: LogProbabilities | None
) -> NDArray[np.float64]:
    """Return the means within each window, shape (measures, windows); see `measure_texts`.

    Args:
        tokens: The windows, shape (windows, tokens).
        log_p: What the model holds of all tokens but the first of each window.
        log_q: What the reference holds of them, if there is one.
    """
    xp = library()
    targets = [xp.array(window)[1:, None] for window in tokens]
    measures = [
        [-xp.take_along_axis(p, t, axis=-1) for p, t in zip(log_p, targets, strict=True)],
    ]
    if log_q is not None:
        _check_vocabulary(log_p[0].shape[-1], log_q[0].shape[-1])
        pairs: list[tuple[Any, Any]] = list(zip(log_q, log_p, strict=True))
        measures.append([divergence_in(xp, xp.exp(q), q, p) for q, p in pairs])
        measures.append([q.argmax(axis=-1) == p.argmax(axis=-1) for q, p in pairs])
    return np.array([[np.asarray(m, np.float64).mean() for m in row] for row in measures])


def _check_vocabulary(ours: int, theirs: int) -> None:
    if ours != theirs:
        raise ValueError(
            f"`reference` must predict {ours} tokens, as the checkpoint does, and predicts {theirs}"
        )
