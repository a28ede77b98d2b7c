"""Requests in the order in which mlx-lm's server takes them: those of one size together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from queue import Queue
from typing import Any


class SizedQueue(Queue[Any]):
    """A queue that hands out what is of one size, and then what has waited longest.

    The server takes requests until it meets one of another size, and answers all those first. So
    a size is handed out until none of it waits, or ``turn`` requests of it were handed out while
    others waited. The next size is that of the request that has waited longest. Whatever arrives,
    a request waits for no more than a turn of each size of which an older request waits.

    Args:
        size_of: Tells the size of a request.
        turn: See above.

    Examples:
        >>> queue = SizedQueue(lambda request: request[0], turn=2)
        >>> for request in ("a1", "b1", "a2", "a3", "b2"):
        ...     queue.put(request)
        >>> [queue.get() for _ in range(5)]
        ['a1', 'a2', 'b1', 'b2', 'a3']
    """

    def __init__(self, size_of: Callable[[Any], str], turn: int) -> None:
        self._size_of, self._most = size_of, turn
        super().__init__()

    def waiting(self) -> dict[str, int]:
        """Return how many requests of each size wait."""
        with self.mutex:
            return {size: len(requests) for size, requests in self._waiting.items()}

    def _init(self, maxsize: int) -> None:
        self._waiting: dict[str, deque[tuple[int, Any]]] = {}
        self._arrivals = count()
        self._current = ""
        self._taken = 0

    def _qsize(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _put(self, item: Any) -> None:
        requests = self._waiting.setdefault(self._size_of(item), deque())
        requests.append((next(self._arrivals), item))

    def _get(self) -> Any:
        others = [size for size in self._waiting if size != self._current]
        if self._current not in self._waiting or (others and self._taken >= self._most):
            self._current = min(others, key=lambda size: self._waiting[size][0][0])
            self._taken = 0
        self._taken = self._taken + 1 if others else 0
        requests = self._waiting[self._current]
        _, item = requests.popleft()
        if not requests:
            del self._waiting[self._current]
        return item
