"""Ctrl-C and SIGTERM, which a run notices even where the exception that they raise is lost.

MLX tries one conversion of an argument after the other, and clears what the failed ones raised. A
signal that arrives while NumPy computes the product in ``mx.array(a @ b)`` raises its exception
within such a conversion: it is lost, the array is right, and the run goes on. So the handler also
remembers that it was called, and every loop asks for it between two items.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_arrived: list[int] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise ``KeyboardInterrupt`` within the block, and be remembered.

    A signal that the process was told to ignore is ignored. In the main thread only.
    """
    before = {s: signal.getsignal(s) for s in _SIGNALS}
    heard = [s for s in _SIGNALS if before[s] is not signal.SIG_IGN]
    for s in heard:
        signal.signal(s, _interrupt)
    try:
        yield
    finally:
        for s in heard:
            signal.signal(s, before[s])
        _arrived.clear()


def is_interrupted() -> bool:
    """Tell whether a signal came within the block, noticed or lost."""
    return bool(_arrived)


def between(items: Iterable[T]) -> Iterator[T]:
    """Yield the items; raise ``KeyboardInterrupt`` before the next one if a signal was lost."""
    for item in items:
        notice_interruption()
        yield item
    notice_interruption()


@contextmanager
def saying_when_interrupted(waits: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Add notes to an interruption of the block, also where a callback made another error of it.

    Args:
        waits: Says, when it comes to that, what the same command goes on with.
    """
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if not isinstance(error, KeyboardInterrupt) and not is_interrupted():
            raise
        interrupt = error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt()
        for note in waits():
            interrupt.add_note(note)
        if interrupt is error:
            raise
        raise interrupt from error


def notice_interruption() -> None:
    """Raise ``KeyboardInterrupt`` if a signal was lost."""
    if is_interrupted():
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _arrived.append(number)
    raise KeyboardInterrupt
