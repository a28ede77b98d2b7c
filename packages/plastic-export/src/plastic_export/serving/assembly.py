"""The parts of a server, put together and taken apart."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from threading import Thread

import mlx.core as mx

from plastic_export.serving.demand import Demand
from plastic_export.serving.generator import SizeGenerator
from plastic_export.serving.http_server import HttpServer
from plastic_export.serving.memory_policy import MemoryPolicy
from plastic_export.serving.metrics import Readings, ServingMetrics
from plastic_export.serving.prompt_cache import OpenPromptCache
from plastic_export.serving.provider import DialProvider


class Assembly:
    """Everything that serves one folder: it generates once it is made, and listens after `listen`.

    Args:
        folder: The compressed folder.
        settings: The settings of the installed ``mlx_lm.server``.
        memory: The limit of memory in bytes, or None.
        page: Whether there is a page.

    Attributes:
        provider: The model.
        http: What listens.
    """

    def __init__(
        self, folder: Path, settings: Namespace, *, memory: int | None, page: bool
    ) -> None:
        self._metrics = ServingMetrics(self._readings)
        policy = None if memory is None else MemoryPolicy(memory)
        self._cache = OpenPromptCache(settings.prompt_cache_size)
        self.provider = DialProvider(settings, folder, self._metrics, policy, self._cache)
        self._memory_before = None if memory is None else mx.set_memory_limit(memory)
        self._generator = SizeGenerator(self.provider, self._cache, self._metrics)
        try:
            self.provider.wait()
            self._demand = Demand(self.provider, self._cache, policy)
            address = (settings.host, settings.port)
            parts = (self._generator, self._demand, self._metrics)
            self.http = HttpServer(address, *parts, has_page=page)
        except BaseException:
            self._end()
            raise
        self._listener = Thread(target=self.http.serve_forever, args=(0.1,), name="plastic serve")

    def listen(self) -> None:
        """Answer requests from now on."""
        self._listener.start()

    def close(self) -> None:
        """Finish what was begun, and end."""
        self.http.shutdown()
        self._listener.join()
        try:
            self.http.finish_begun()
        finally:
            self._end()

    def _end(self) -> None:
        self._generator.stop_and_join()
        if self._memory_before is not None:
            mx.set_memory_limit(self._memory_before)

    def _readings(self) -> Readings:
        provider, policy = self.provider, self.provider.policy
        waiting = self._generator.requests.waiting()
        return {
            "requests_at_hand": ("Requests that are not answered yet.", self._demand.at_hand),
            "requests_waiting": ("Requests that wait for their turn, by size.", waiting),
            "model_bytes": ("Bytes of the weights now.", provider.nbytes),
            "model_bytes_least": ("Bytes of the weights at the least size.", provider.sizes.least),
            "model_bytes_largest": ("The same at the largest.", provider.sizes.largest),
            "default_keep": ("Size of requests that name none.", self._demand.keep),
            "memory_limit_bytes": ("Limit of memory; 0: none.", policy.limit if policy else 0),
            "memory_active_bytes": ("Memory that arrays take.", mx.get_active_memory()),
            "memory_cache_bytes": ("Memory that MLX keeps for arrays.", mx.get_cache_memory()),
            "memory_peak_bytes": ("The most that arrays took.", mx.get_peak_memory()),
            "prompt_cache_bytes": ("Bytes of cached prompts.", self._cache.nbytes),
        }
