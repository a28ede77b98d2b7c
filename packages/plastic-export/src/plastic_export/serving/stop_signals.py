"""Ctrl-C and SIGTERM, which ask a server to finish what it has begun."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first signal within the block call ``stop``, and the next do what it did before.

    A signal that the process was told to ignore is ignored. In the main thread only.
    """
    before = {s: signal.getsignal(s) for s in SIGNALS}
    heard = [s for s in SIGNALS if before[s] is not signal.SIG_IGN]

    def restore() -> None:
        for s in heard:
            signal.signal(s, before[s])

    def answer(number: int, frame: FrameType | None) -> None:
        restore()
        stop()

    for s in heard:
        signal.signal(s, answer)
    try:
        yield
    finally:
        restore()
