"""What a model shows of itself: how its KV cache grows, and how many tokens it knows."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

BLOCK = 256
"""Tokens by which mlx-lm lets a cache grow."""


class CacheGrowth(NamedTuple):
    """Bytes of a cache by tokens.

    Attributes:
        fixed: What it takes however many there are.
        per_token: What each adds. A cache that stops growing is taken for one that does not.

    Examples:
        >>> CacheGrowth(fixed=100, per_token=2).nbytes(300)
        1124
    """

    fixed: int
    per_token: int

    def nbytes(self, tokens: int) -> int:
        """Return the bytes for so many tokens, in blocks."""
        return self.fixed + self.per_token * BLOCK * -(-tokens // BLOCK)


class FirstRun(NamedTuple):
    """What a model shows of itself.

    Attributes:
        growth: How the cache grows.
        vocabulary: Tokens that the model can predict.
    """

    growth: CacheGrowth
    vocabulary: int


def first_run(model: nn.Module) -> FirstRun:
    """Run one token through a model, and only the shapes of a block more.

    What is lazy is read by that.
    """
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    logits = model(mx.array([[0]]), cache=cache)
    mx.eval(logits, [c.state for c in cache])
    model(mx.zeros((1, BLOCK), mx.int32), cache=cache)
    per_token = -(-_state_bytes(cache) // (BLOCK + 1))
    return FirstRun(CacheGrowth(0, per_token), logits.shape[-1])


def _state_bytes(cache: list[Any]) -> int:
    states: list[tuple[str, Any]] = tree_flatten([c.state for c in cache])  # type: ignore[assignment]
    return sum(array.nbytes for _, array in states if isinstance(array, mx.array))
