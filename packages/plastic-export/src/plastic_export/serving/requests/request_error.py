"""A request that cannot be answered as it was put."""

from __future__ import annotations


class RequestError(Exception):
    """What is wrong with a request, in a line.

    No ValueError, which versions of mlx-lm catch or do not catch, and answer in their own ways.

    Args:
        line: What the client is told.
        status: Status of HTTP.
    """

    def __init__(self, line: str, status: int = 400) -> None:
        super().__init__(line)
        self.status = status
