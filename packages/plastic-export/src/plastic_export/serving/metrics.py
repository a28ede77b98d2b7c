"""What a server counts, in the text form of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Summary, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

Readings = Mapping[str, tuple[str, Mapping[str, float] | float]]
"""By name: what a gauge means, and its value, or its values by size."""


class ServingMetrics(Collector):
    """Counters of one server, and gauges that are read when they are asked for.

    Args:
        read: Returns the gauges.

    Attributes:
        requests: Requests by what became of them: ``answered``, ``refused`` or ``hung_up``.
        tokens: Tokens generated, by the name of the model with its size.
        seconds: Seconds from a request's first token to its last, by the same.
        turns: Seconds that turning the model took, by the same.
    """

    def __init__(self, read: Callable[[], Readings]) -> None:
        self._read, self._registry = read, CollectorRegistry()
        by_size: Any = {"labelnames": ("size",), "registry": self._registry}
        self.requests = Counter(
            "plastic_requests", "Requests by outcome.", ("outcome",), registry=self._registry
        )
        self.tokens = Counter("plastic_tokens", "Tokens generated, by size.", **by_size)
        self.seconds = Summary("plastic_generation_seconds", "Seconds of generation.", **by_size)
        self.turns = Summary("plastic_turn_seconds", "Turns of the model, by size.", **by_size)
        self._registry.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges; called by prometheus_client."""
        for name, (about, value) in self._read().items():
            by_size = isinstance(value, Mapping)
            gauge = GaugeMetricFamily(f"plastic_{name}", about, labels=["size"] if by_size else ())
            for size, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
                gauge.add_metric([size] if size else [], number)
            yield gauge

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Name no gauge before it is read; called by prometheus_client."""
        return ()

    def text(self) -> tuple[bytes, str]:
        """Return all of it as text, and the type of that text."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
