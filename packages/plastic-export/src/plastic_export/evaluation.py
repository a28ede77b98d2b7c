"""How well a checkpoint predicts a text, and how far it is from a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from plastic_export.models import load_for_inference, load_tokenizer, read_text, text_windows
from plastic_export.reader import open_checkpoint
from plastic_export.track import Track, untracked

_LOGITS = 2**23  # at most so many logits of one model at a time, unless one window has more
_ROWS = 8  # and at most so many windows


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on one text. Standard errors are over windows, None if there is only one.

    Attributes:
        text: Name of the text's file.
        windows: How many windows were run.
        tokens: How many tokens were predicted: all but the first of each window.
        nll: Mean negative log-likelihood, nats per token.
        nll_error: Its standard error.
        perplexity: ``exp(nll)``.
        perplexity_error: Its standard error to first order, ``perplexity * nll_error``.
        kl: Mean Kullback-Leibler divergence KL(reference || model), nats per token; None without
            a reference.
        kl_error: Its standard error.
        top1: Fraction of positions where both hold the same token to be the likeliest.
        top1_error: Its standard error.
    """

    text: str
    windows: int
    tokens: int
    nll: float
    nll_error: float | None
    perplexity: float
    perplexity_error: float | None
    kl: float | None = None
    kl_error: float | None = None
    top1: float | None = None
    top1_error: float | None = None


def evaluate(
    source: str | Path,
    texts: Sequence[str | Path],
    *,
    reference: str | Path | None = None,
    window: int = 256,
    windows: int = 24,
    track: Track = untracked,
) -> list[Evaluation]:
    """Measure perplexity and, against a reference, divergence and agreement on the same windows.

    A difference to the reference is far better determined by ``kl`` and ``top1``, which compare
    both models token by token, than by two perplexities: the windows' own variation cancels.

    Args:
        source: Folder or Hub id, in any format that this package writes or mlx-lm reads.
        texts: UTF-8 files; each is measured by itself.
        reference: Checkpoint to compare with, of the same tokenizer.
        window: Tokens per window; each is run from an empty context.
        windows: How many windows at most, spread evenly over each text.
        track: Wraps the loop over the batches of windows.

    Returns:
        One result per text. Logits of both models are held for one batch at a time.

    Raises:
        ValueError: If a text is shorter than one window, or the two tokenizers differ.
        FormatError: If a checkpoint or a text cannot be read.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If a file is missing or cannot be read.
    """
    model, tokenizer = _load(source)
    tokens = [_windows(tokenizer, text, window, windows) for text in texts]
    judge = None
    if reference is not None:
        judge, other = _load(reference)
        for path, ours in zip(texts, tokens, strict=True):
            _check_same(ours, _windows(other, path, window, windows), source, reference)
    results = []
    for path, ids in zip(texts, tokens, strict=True):
        name = Path(path).name
        results.append(_summary(name, ids, _measure(model, judge, ids, name, track)))
    return results


def _load(source: str | Path) -> tuple[nn.Module, Any]:
    with open_checkpoint(source) as checkpoint:
        return load_for_inference(checkpoint.folder), load_tokenizer(checkpoint.folder)


def _windows(tokenizer: Any, path: str | Path, window: int, windows: int) -> mx.array:
    try:
        return text_windows(tokenizer, read_text(path), length=window, limit=windows)
    except ValueError as error:
        error.add_note(f"in {path}")
        raise


def _check_same(
    ours: mx.array, theirs: mx.array, source: str | Path, reference: str | Path
) -> None:
    if not np.array_equal(np.asarray(ours), np.asarray(theirs)):
        raise ValueError(
            f"`reference` {str(reference)!r} splits the text into other tokens than "
            f"{str(source)!r}; compare checkpoints of one tokenizer"
        )


def _measure(
    model: nn.Module, judge: nn.Module | None, tokens: mx.array, name: str, track: Track
) -> NDArray[np.float64]:
    """Means per window, shape (measures, windows): nll and, with a judge, KL and agreement."""
    vocabulary = model(tokens[:1, :1]).shape[-1]
    rows = min(_ROWS, max(1, _LOGITS // (tokens.shape[1] * vocabulary)))
    batches = [tokens[i : i + rows] for i in range(0, len(tokens), rows)]
    measured = [_measure_batch(model, judge, batch) for batch in track(batches, f"reading {name}")]
    return np.hstack(measured)


def _measure_batch(
    model: nn.Module, judge: nn.Module | None, tokens: mx.array
) -> NDArray[np.float64]:
    log_p = _log_probabilities(model, tokens[:, :-1])
    measures = [-mx.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]]
    if judge is not None:
        log_q = _log_probabilities(judge, tokens[:, :-1])
        q = mx.exp(log_q)
        measures.append(mx.where(q > 0, q * (log_q - log_p), 0).sum(axis=-1))
        measures.append(log_q.argmax(axis=-1) == log_p.argmax(axis=-1))
    return np.array([np.asarray(m, np.float64).mean(axis=1) for m in measures])


def _log_probabilities(model: nn.Module, tokens: mx.array) -> mx.array:
    """Float32, shape (windows, tokens, vocabulary)."""
    logits: mx.array = model(tokens).astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _summary(name: str, tokens: mx.array, measured: NDArray[np.float64]) -> Evaluation:
    """Mean and standard error of each measure over the windows."""
    count = len(tokens)
    nll, *compared = (float(mean) for mean in measured.mean(axis=1))
    errors: list[float | None] = [None] * len(measured)
    if count > 1:
        errors = [float(e) for e in measured.std(axis=1, ddof=1) / sqrt(count)]
    kl, top1 = compared or (None, None)
    nll_error, kl_error, top1_error = (*errors, None, None)[:3]
    return Evaluation(
        text=name,
        windows=count,
        tokens=tokens[:, 1:].size,
        nll=nll,
        nll_error=nll_error,
        perplexity=exp(nll),
        perplexity_error=None if nll_error is None else exp(nll) * nll_error,
        kl=kl,
        kl_error=kl_error,
        top1=top1,
        top1_error=top1_error,
    )
