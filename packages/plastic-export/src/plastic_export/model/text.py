"""A text as windows of tokens."""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import takewhile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file, line ends as they are.

    Raises:
        FormatError: If it is not UTF-8; the message says where.
        OSError: If it does not exist or cannot be read.

    Examples:
        >>> len(read_text("text.txt"))
        3000
    """
    try:
        return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text at byte {error.start}"
        raise FormatError.about(path, reason, "convert it to UTF-8") from None


def text_windows(
    tokenizer: Any, text: str, *, length: int = 256, limit: int | None = None
) -> mx.array:
    """Cut a text into consecutive windows of tokens that do not overlap.

    Each window is for a model with an empty context, so each begins with the tokens that begin
    every text, if the tokenizer puts any. Where the text itself has some of them at the beginning
    of a window, they do not stand there twice. The rest of the last window is left out.

    Args:
        tokenizer: A tokenizer of `load_tokenizer`.
        text: Any text of at least one window.
        length: Tokens per window, at least 2 and more than begin every text.
        limit: Take this many windows at most, spread evenly over the text.

    Returns:
        Token ids, int32, of shape (windows, length), in the order of the text.

    Raises:
        ValueError: If the text is shorter than one window, or ``length`` or ``limit`` too small.

    Examples:
        >>> windows = text_windows(load_tokenizer("SRC"), read_text("text.txt"), length=24, limit=8)
        >>> windows.shape
        (8, 24)
    """
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return cut_windows(ids, prefix_tokens(tokenizer), length=length, limit=limit)


def prefix_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer puts before every text; those after it are left out.

    They are what an empty text and another begin with in common.
    """
    empty, other = tokenizer.encode(""), tokenizer.encode("a")
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(empty, other, strict=False))
    return [token for token, _ in pairs]


def cut_windows(
    ids: Sequence[int], prefix: Sequence[int], *, length: int, limit: int | None
) -> mx.array:
    """Cut tokens into windows as `text_windows` does.

    Args:
        ids: The tokens of a text.
        prefix: The tokens that begin every window.
        length: Tokens per window.
        limit: How many windows at most.

    Raises:
        ValueError: As `text_windows` does.
    """
    least = max(2, len(prefix) + 1)
    if length < least:
        raise ValueError(f"`length` must be at least {least} tokens, got {length}.")
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1 window, got {limit}.")
    starts = _starts(ids, {*prefix}, length - len(prefix))
    if not starts:
        raise ValueError(
            f"the text has {len(prefix) + len(ids)} tokens, fewer than one window of {length}; "
            "take a longer text or a shorter window"
        )
    taken = len(starts) if limit is None else min(limit, len(starts))
    chosen = [starts[i] for i in evenly_spread(taken, len(starts))]
    rows = [[*prefix, *ids[i : i + length - len(prefix)]] for i in chosen]
    return mx.array(np.array(rows, np.int32))


def _starts(ids: Sequence[int], prefix: Set[int], step: int) -> list[int]:
    """Return where each window's own tokens begin, past those that begin it in any case."""
    starts, place = list[int](), 0
    while place + step <= len(ids):
        if ids[place] in prefix:
            place += 1
        else:
            starts.append(place)
            place += step
    return starts


def evenly_spread(taken: int, count: int) -> NDArray[np.intp]:
    """Return ``taken`` of the numbers below ``count``, at least as many, increasing."""
    return np.arange(taken) * count // taken
