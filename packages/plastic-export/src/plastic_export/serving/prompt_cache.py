"""mlx-lm's cache of prompts, which always leaves something to compute."""

from __future__ import annotations

from typing import Any

from mlx_lm import server
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache


class OpenPromptCache(server.LRUPromptCache):  # type: ignore[misc]  # mlx-lm publishes no types
    """A cache of prompts that never holds the whole of one.

    A prompt may be all that was cached before, as where an answer is to be continued. Its last
    token has to be computed anew, since that is what predicts the next; mlx-lm's server ends where
    none is left.
    """

    def fetch_nearest_cache(self, model: Any, tokens: list[int]) -> tuple[Any, list[int]]:
        """Return what is cached of the start of a prompt, and its other tokens, one at least."""
        cache, rest = super().fetch_nearest_cache(model, tokens)
        if cache is None or rest:
            return cache, rest
        if not can_trim_prompt_cache(cache):
            return None, tokens
        trim_prompt_cache(cache, 1)
        return cache, tokens[-1:]
