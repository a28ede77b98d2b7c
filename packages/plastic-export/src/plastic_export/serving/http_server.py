"""Python's HTTP server, which stops once all that it has begun to answer is answered."""

from __future__ import annotations

import logging
import socket
import sys
from functools import partial
from http.server import ThreadingHTTPServer
from threading import Condition
from typing import Any

from plastic_export.serving.demand import Demand
from plastic_export.serving.generator import SizeGenerator
from plastic_export.serving.handler import SizeHandler
from plastic_export.serving.metrics import ServingMetrics
from plastic_export.serving.provider import DialProvider


class HttpServer(ThreadingHTTPServer):
    """Requests over HTTP, each in a thread.

    Args:
        address: Host and port; port 0 takes a free one.
        generator: mlx-lm's generation.
        demand: What the requests at hand need.
        metrics: What is counted.
        has_page: Whether there is a page at the root.

    Raises:
        OSError: If the address cannot be taken; its ``filename`` is the address.
    """

    request_queue_size = 128
    provider: DialProvider

    def __init__(
        self,
        address: tuple[str, int],
        generator: SizeGenerator,
        demand: Demand,
        metrics: ServingMetrics,
        *,
        has_page: bool,
    ) -> None:
        self.provider, self.demand, self.metrics = generator.model_provider, demand, metrics
        self.has_page = has_page
        self._begun, self._at_rest = 0, Condition()
        try:
            found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, *_, place = found[0]
            super().__init__(place, partial(SizeHandler, generator))  # type: ignore[arg-type]
        except OSError as error:
            error.filename = f"{address[0]}:{address[1]}"
            raise

    def models(self, created: int) -> list[dict[str, Any]]:
        """Return what ``/v1/models`` lists: the size of requests that name none, then all."""
        sizes, keep = self.provider.sizes, self.demand.keep
        about = {"object": "model", "created": created, "owned_by": "plastic"}
        prices = {size.keep: size.price for size in self.provider.listed}

        def entry(name: str, keep: float) -> dict[str, Any]:
            plastic = {
                "keep": keep,
                "bytes": sizes.nbytes(keep),
                "price": prices.get(keep),
                "priced_in": self.provider.priced_in,
            }
            return {"id": name, **about, "plastic": plastic}

        return [entry(sizes.name, keep), *(entry(sizes.called(k), k) for k in prices)]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin to answer a request in a thread."""
        with self._at_rest:
            self._begun += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer it there."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._at_rest:
                self._begun -= 1
                self._at_rest.notify_all()

    def finish_begun(self) -> None:
        """Take no more requests, and return once those that were begun are answered."""
        self.server_close()
        with self._at_rest:
            while self._begun:
                self._at_rest.wait(0.1)  # in pieces, so that a signal is heard

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what ended a request; a client that hung up is no error."""
        error = sys.exception()
        is_gone = isinstance(error, ConnectionError | TimeoutError)
        logging.log(
            logging.INFO if is_gone else logging.ERROR,
            "a request of %s ended: %r",
            client_address[0],
            error,
            exc_info=None if is_gone else error,
        )
