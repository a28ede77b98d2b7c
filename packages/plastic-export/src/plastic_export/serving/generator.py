"""mlx-lm's thread that generates: its requests by size, its tokens counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any
from weakref import WeakSet

from mlx_lm import server

from plastic_export.serving.metrics import ServingMetrics
from plastic_export.serving.provider import DialProvider
from plastic_export.serving.requests.failed_start import FailedStart
from plastic_export.serving.requests.sized_queue import SizedQueue
from plastic_export.serving.thread_end import outlast


def size_of(request: tuple[Any, Any, Any]) -> str:
    """Return the name of the model, with its size, in what waits in mlx-lm's queue."""
    *_, arguments = request
    return str(arguments.model.model)


class SizeGenerator(server.ResponseGenerator):  # type: ignore[misc]  # mlx-lm publishes no types
    """mlx-lm's generation, fed by a `SizedQueue`.

    Args:
        provider: The model.
        prompt_cache: mlx-lm's cache of prompts.
        metrics: What is counted.
    """

    def __init__(self, provider: DialProvider, prompt_cache: Any, metrics: ServingMetrics) -> None:
        self._metrics = metrics
        self._begun: WeakSet[Queue[Any]] = WeakSet()  # answers that somebody still waits for
        super().__init__(provider, prompt_cache)
        # mlx-lm asks for it anew each time, and nothing is asked of it yet
        self.requests = SizedQueue(size_of, provider.cli_args.decode_concurrency)

    def generate(
        self,
        request: Any,
        generation_args: Any,
        progress_callback: Callable[..., None] | None = None,
    ) -> tuple[Any, Iterator[Any]]:
        """Have a request answered, as mlx-lm does, and count its tokens by size.

        What ``request.check_client`` raises between two tokens, or two steps of the prompt, ends
        it.

        Raises:
            FailedStart: If it fails before the first token.
        """

        def progress(done: int, total: int) -> None:
            request.check_client()
            if progress_callback is not None:
                progress_callback(done, total)

        try:
            context, tokens = super().generate(request, generation_args, progress)
        except Exception as error:
            raise FailedStart(error) from error
        return context, self._counted(tokens, str(generation_args.model.model), request)

    def stop_and_join(self) -> None:
        """End the thread that generates, and wait until it has ended."""
        super().stop_and_join()
        outlast(self._generation_thread)

    def _counted(self, tokens: Iterator[Any], size: str, request: Any) -> Iterator[Any]:
        started = time.perf_counter()
        for token in tokens:
            request.check_client()
            self._metrics.tokens.labels(size).inc()
            yield token
        self._metrics.seconds.labels(size).observe(time.perf_counter() - started)

    def _generate(self) -> None:
        """Load the model in this thread, to which MLX's streams belong, then generate."""
        if not self.model_provider.open():
            self.model_provider.close()
            return
        while not self._stop:
            try:
                super()._generate()
            except Exception as error:
                logging.exception("what was being generated failed")
                self._fail(error)
        self.model_provider.close()

    def _next_request(self, timeout: float | None = None) -> Any:
        request = super()._next_request(timeout)
        if request is not None:
            self._begun.add(request[0])
        return request

    def _fail(self, error: Exception) -> None:
        """End what was begun with an error, so that what waits can be answered."""
        for answers in list(self._begun):
            answers.put(error)
        self._begun.clear()
