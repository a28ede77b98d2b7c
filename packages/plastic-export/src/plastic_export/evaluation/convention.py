"""How a text is cut into windows, which of their tokens are scored, and what errors are over.

Perplexities are comparable only where all three agree. So other tools' rules stand beside our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import numpy as np

from plastic_export.calibration.tokens import Cut, TokenText, spread_windows

Like = Literal["llama.cpp", "mlx-lm"]


@dataclass(frozen=True)
class Convention:
    """The rules by which a text is measured.

    Attributes:
        window: Tokens of a window, unless the caller chooses.
        windows: How many windows at most, unless the caller chooses; None for all.
        cut: Cuts a text into windows.
        halves: Whether the first half of a window is read but not scored.
        over_tokens: Whether errors take the tokens for independent, not the windows.

    Examples:
        >>> CONVENTIONS["llama.cpp"].context(512), CONVENTIONS["mlx-lm"].context(512)
        (256, 0)
    """

    window: int
    windows: int | None
    cut: Cut
    halves: bool = False
    over_tokens: bool = False

    def context(self, window: int) -> int:
        """Return how many tokens of a window are read before what follows one is scored."""
        return window // 2 if self.halves else 0


def llama_chunks(text: TokenText, *, length: int, limit: int | None) -> mx.array:
    """Cut a text as llama.cpp's perplexity tool does: the first chunks, in order.

    A token that begins every text takes the place of each chunk's first token.

    Raises:
        ValueError: If the text is shorter than two chunks, or a chunk has no token to be scored.

    Examples:
        >>> llama_chunks(TokenText(range(10, 20), [1], None), length=4, limit=None).tolist()
        [[1, 10, 11, 12], [1, 14, 15, 16]]
    """
    ids = _begun(text)
    if length < 3:
        raise ValueError(f"`length` must be at least 3 tokens, half of which are scored: {length}.")
    if len(ids) < 2 * length:
        raise ValueError(
            f"the text has {len(ids)} tokens; as llama.cpp it takes two windows of {length}, "
            f"{2 * length} tokens"
        )
    rows = _consecutive(ids, length, limit)
    if text.prefix:
        rows[:, 0] = text.prefix[0]
    return mx.array(rows)


def mlx_lm_rows(text: TokenText, *, length: int, limit: int | None) -> mx.array:
    """Cut a text as ``mlx_lm.perplexity`` does the rows of a data set that has this one document.

    What begins every text begins the first window alone, and what ends one follows the last token.

    Raises:
        ValueError: If the text is shorter than one window, or that than two tokens.

    Examples:
        >>> mlx_lm_rows(TokenText(range(10, 15), [1], 2), length=3, limit=None).tolist()
        [[1, 10, 11], [12, 13, 14]]
    """
    ids = _begun(text)
    if text.end is not None and ids[-1:] != [text.end]:
        ids.append(text.end)
    if length < 2:
        raise ValueError(f"`length` must be at least 2 tokens, got {length}.")
    if len(ids) < length:
        raise ValueError(
            f"the text has {len(ids)} tokens, fewer than one window of {length}; "
            "take a longer text or a shorter window"
        )
    return mx.array(_consecutive(ids, length, limit))


def _begun(text: TokenText) -> list[int]:
    """Return the tokens with those that begin every text, once."""
    prefix, ids = [*text.prefix], [*text.ids]
    return ids if ids[: len(prefix)] == prefix else [*prefix, *ids]


def _consecutive(ids: Sequence[int], length: int, limit: int | None) -> np.ndarray:
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1 window, got {limit}.")
    count = min(len(ids) // length, len(ids) if limit is None else limit)
    return np.array(ids[: count * length], np.int32).reshape(count, length)


OWN = Convention(window=256, windows=24, cut=spread_windows)
CONVENTIONS: dict[Like, Convention] = {
    "llama.cpp": Convention(512, None, llama_chunks, halves=True, over_tokens=True),
    "mlx-lm": Convention(512, 256, mlx_lm_rows, over_tokens=True),
}
"""The rules of other tools, by their names."""
