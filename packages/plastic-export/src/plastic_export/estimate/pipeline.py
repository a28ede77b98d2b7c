"""Processes one behind the other, each at a part that the one before it has finished. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Pipelined(NamedTuple):
    """When processes are done with a row of parts.

    Attributes:
        seconds: Until the last of them is.
        waits: Seconds that each waited for others, or for what it sent or was sent.
    """

    seconds: float
    waits: tuple[float, ...]


def pipelined(works: Sequence[Sequence[float]], sending: Sequence[float]) -> Pipelined:
    """Schedule parts that all processes go through, one handing on to the next.

    A process begins a part once it has what the one before it hands on, which waits until that
    is taken over.

    Args:
        works: Seconds by process, the first one first, and part.
        sending: Seconds that what is handed on after each part is on its way.

    Examples:
        >>> pipelined([[2.0, 2.0], [2.0, 2.0]], [0.0, 0.0])
        Pipelined(seconds=6.0, waits=(2.0, 2.0))
    """
    free = [0.0] * len(works)
    for part, seconds in enumerate(sending):
        handed = 0.0
        for place, work in enumerate(works):
            free[place] = max(free[place], handed) + work[part]
            if place + 1 < len(works):
                handed = max(free[place], free[place + 1]) + seconds
                free[place] = handed
    end = max(free)
    return Pipelined(end, tuple(end - sum(work) for work in works))
