"""What the requests at hand need, and the size of those that name none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import mlx.core as mx

from plastic_export.serving.memory_policy import MemoryPolicy
from plastic_export.serving.provider import DialProvider
from plastic_export.serving.requests.request_error import RequestError
from plastic_export.serving.requests.size_names import KEEP


class Demand:
    """The requests at hand, each with the bytes that its KV cache may grow to.

    Args:
        provider: The model.
        prompt_cache: mlx-lm's cache of prompts, which gives way to what is at hand.
        policy: What follows from the limit of memory; None where there is none.

    Attributes:
        keep: The size of requests that name none.
    """

    def __init__(
        self, provider: DialProvider, prompt_cache: Any, policy: MemoryPolicy | None
    ) -> None:
        self._provider, self._prompt_cache, self._policy = provider, prompt_cache, policy
        self._lock, self._needs = Lock(), dict[object, int]()
        self.keep = provider.first_keep

    @property
    def at_hand(self) -> int:
        """How many requests are at hand."""
        return len(self._needs)

    @contextmanager
    def admitted(self, tokens: int, keep: float | None) -> Iterator[float]:
        """Count a request among those at hand; give the size that it is answered at.

        Args:
            tokens: The most that it can have, prompt and answer.
            keep: The size that it names, or None.

        Raises:
            RequestError: If the size that it names is above the limit of memory.
        """
        need, request = self._provider.shown.growth.nbytes(tokens), object()
        with self._lock:
            if keep is not None:
                self._check(keep)
            self._needs[request] = need
            chosen = self._chosen() if keep is None else keep
        try:
            yield chosen
        finally:
            with self._lock:
                del self._needs[request]

    def _chosen(self) -> float:
        if self._policy is None:
            return self.keep
        sizes = {listed.nbytes: listed.keep for listed in self._provider.listed}
        now = self._provider.sizes.nbytes(self.keep)
        needed = max(sum(self._needs.values()), self._others())
        self.keep = sizes[self._policy.size(sorted(sizes), now=now, needed=needed)]
        return self.keep

    def _others(self) -> int:
        """Return the bytes that neither weights nor cached prompts take."""
        used: int = self._provider.nbytes + self._prompt_cache.nbytes
        return mx.get_active_memory() - used

    def _check(self, keep: float) -> None:
        sizes, policy = self._provider.sizes, self._policy
        if policy is None or sizes.nbytes(keep) <= policy.room:
            return
        most = policy.room / sizes.largest
        line = f'"{KEEP}" must be at most {most:.4g}, the limit of memory, got {keep:g}'
        raise RequestError(line)
