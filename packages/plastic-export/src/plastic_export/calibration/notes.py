"""What a calibration text cannot show, said before the work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_export.calibration.tokens import TokenReader
from plastic_export.checkpoint.warning import warn_about

FEW_KINDS = 24
"""Kinds of tokens that half of a text takes at least (heuristic). With vocabularies of 512 and
49,152 tokens the shipped texts take 45 and 149, prose 27 and 72, code 32 and 68, chats 31 and 114;
sums of two numbers as chats take 8 and 11, lines of a log 7 and 5."""
_LEAST_VOCABULARY = 500  # smaller ones are of characters or bytes, of which few kinds are enough
_SHOWN = 4


def note_what_is_missing(
    file: str | Path, windows: mx.array, reader: TokenReader, *, is_all: bool
) -> None:
    """Warn of a text that is one window, or of few kinds of tokens, and of windows too short.

    Args:
        file: The text.
        windows: Shape (windows, tokens).
        reader: What cut the text.
        is_all: Whether the text has no other windows.
    """
    count, length = windows.shape
    if count == 1 and is_all:
        warn_about(file, f"one window of {length} tokens is all of it", "a longer text shows more")
    reach = max(sliding_windows(reader.config), default=0)
    if length < reach:
        reason = f"windows of {length} tokens are shorter than the model's sliding window, {reach}"
        remedy = f"give --window {reach + 1} or more to measure what lies beyond it"
        warn_about(file, reason, remedy)
    if reader.size >= _LEAST_VOCABULARY and (kinds := frequent_kinds(reader.counts)):
        names = ", ".join(repr(name) for name in reader.names(kinds[:_SHOWN]))
        reason = f"half of its tokens are of {len(kinds)} kinds, such as {names}"
        warn_about(file, reason, "what they ask for outweighs all else; add other texts")


def frequent_kinds(counts: NDArray[np.int64]) -> list[int]:
    """Return the most frequent tokens, half of a text, if they are fewer than `FEW_KINDS`.

    Args:
        counts: How often each token came.
    """
    order = np.argsort(-counts, kind="stable")
    needed = int(np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2)) + 1
    return order[:needed].tolist() if needed < FEW_KINDS else []


def sliding_windows(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield how far the layers of a configuration look back that do not see everything."""
    size = config.get("sliding_window")
    if isinstance(size, int) and config.get("use_sliding_window", True):
        yield size
    for name, part in config.items():
        if name.endswith("_config") and isinstance(part, Mapping):
            yield from sliding_windows(part)
