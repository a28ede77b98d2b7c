"""A text as windows of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, noting


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

    Each window is for a model with an empty context, so each begins with the token that begins
    every text, if the tokenizer puts one. The rest of the last window is left out.

    Args:
        tokenizer: A tokenizer of `load_tokenizer`.
        text: Any text of at least one window.
        length: Tokens per window, at least 2.
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
    if length < 2:
        raise ValueError(f"`length` must be at least 2 tokens, got {length}.")
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1 window, got {limit}.")
    start = [i for i in tokenizer.encode("")[:1] if i == tokenizer.bos_token_id]
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    step = length - len(start)
    count = len(ids) // step
    if count == 0:
        raise ValueError(
            f"the text has {len(start) + len(ids)} tokens, fewer than one window of {length}; "
            "take a longer text or a shorter window"
        )
    taken = count if limit is None else min(limit, count)
    windows = np.array(ids[: count * step], np.int32).reshape(count, step)
    spread = windows[evenly_spread(taken, count)]
    return mx.array(np.hstack([np.tile(np.array(start, np.int32), (taken, 1)), spread]))


def file_windows(
    tokenizer: Any, file: str | Path, *, length: int, limit: int | None = None
) -> mx.array:
    """Cut the text of a file as `text_windows` does; an error says in which file.

    Raises:
        FormatError, OSError: As `read_text` does.
        ValueError: As `text_windows` does.
    """
    with noting(f"in {file}"):
        return text_windows(tokenizer, read_text(file), length=length, limit=limit)


def evenly_spread(taken: int, count: int) -> NDArray[np.intp]:
    """Return ``taken`` of the numbers below ``count``, at least as many, increasing."""
    return np.arange(taken) * count // taken
