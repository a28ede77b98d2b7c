"""Checkpoints of the zoo in stock mlx-lm: what they predict, a few generated tokens."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
from plastic_export import load_model, load_tokenizer, text_windows

from zoo.building import TEXT

WINDOW, WINDOWS = 16, 4


def run_stock(folder: Path, *, adapter: Path | None = None, own: bool = False) -> mx.array:
    """Load a folder in stock mlx-lm, generate a few tokens, and return what it predicts.

    It computes in float32, the one type in which MLX multiplies by chosen experts on the CPU.

    Args:
        folder: Checkpoint.
        adapter: Stock adapter to lay over it.
        own: Whether it needs this project's model file; then this project loads it.

    Returns:
        Logarithms of probabilities, computed in float32, of shape (windows, tokens, vocabulary).
    """
    if own:
        model, tokenizer = load_model(folder), mlx_lm.utils.load_tokenizer(folder)
    else:
        where = None if adapter is None else str(adapter)
        model, tokenizer, *_ = mlx_lm.load(str(folder), adapter_path=where)
    model.set_dtype(mx.float32)
    mlx_lm.generate(model, tokenizer, "def main(", max_tokens=3)
    return predictions(model, windows_of(folder))


def windows_of(folder: Path) -> mx.array:
    """Return the windows that ``evaluate`` and ``plan`` read."""
    return text_windows(load_tokenizer(folder), TEXT, length=WINDOW, limit=WINDOWS)


def predictions(model: nn.Module, windows: mx.array) -> mx.array:
    """Return the logarithms of the probabilities that a model gives every token, in float32."""
    logits: mx.array = model(windows)
    predicted: mx.array = nn.log_softmax(logits.astype(mx.float32), axis=-1)
    return predicted


def divergence(reference: mx.array, other: mx.array) -> float:
    """Return the KL divergence of two predictions in nats, the mean over all tokens but the last.

    The last token of a window predicts nothing that ``evaluate`` counts.
    """
    kl = (mx.exp(reference) * (reference - other)).sum(-1)[:, :-1].mean()
    return float(kl)
