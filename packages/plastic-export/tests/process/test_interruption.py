"""Signals are noticed, also where what they raise is lost; and nothing of them stays behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import mlx.core as mx
import numpy as np
import pytest
from plastic_export.process.interruption import (
    between,
    interruptible,
    is_interrupted,
    saying_when_interrupted,
)

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def lose(number: int) -> None:
    """Send a signal to this process where its exception is lost."""
    with suppress(KeyboardInterrupt):
        os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def same_handlers() -> Iterator[None]:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@interruptible()
def lose_at(places: Sequence[int], count: int, number: int, seen: list[int]) -> None:
    """Go through a loop, and lose a signal at some of its items."""
    for item in between(range(count)):
        seen.append(item)
        if item in places:
            lose(number)


@BOTH
def test_a_signal_raises_at_once(number: int) -> None:
    seen: list[int] = []

    @interruptible()
    def work() -> None:
        os.kill(os.getpid(), number)
        seen.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == []


@BOTH
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_lost_signal_ends_the_loop_after_the_item_at_hand(number: int, place: int) -> None:
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        lose_at([place], 5, number, seen)
    assert seen == [*range(place + 1)]


@interruptible()
def multiply_for_minutes() -> None:
    A = np.ones((600, 600), np.float32)
    for _ in between(range(10_000)):
        mx.array(A @ A)


def test_a_signal_during_a_product_that_becomes_an_array_ends_the_loop() -> None:
    sender = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            multiply_for_minutes()
    finally:
        sender.join()
        signal.signal(signal.SIGTERM, handler)


def test_an_earlier_signal_is_forgotten() -> None:
    with interruptible():
        lose(signal.SIGINT)
        assert is_interrupted()
    with interruptible():
        assert not is_interrupted()
        assert list(between([1, 2])) == [1, 2]


def test_what_the_process_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert list(between([1])) == [1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interruption_says_what_waits() -> None:
    with pytest.raises(KeyboardInterrupt) as stopped, saying_when_interrupted(lambda: ["a", "b"]):
        raise KeyboardInterrupt
    assert stopped.value.__notes__ == ["a", "b"]


def test_an_error_that_a_callback_made_of_an_interruption_is_one() -> None:
    @interruptible()
    @saying_when_interrupted(lambda: ["a"])
    def work() -> None:
        lose(signal.SIGTERM)
        raise TypeError("incompatible function arguments")

    with pytest.raises(KeyboardInterrupt) as stopped:
        work()
    assert stopped.value.__notes__ == ["a"]


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(TypeError) as raised, saying_when_interrupted(lambda: ["a"]):
        raise TypeError("a mistake")
    assert not hasattr(raised.value, "__notes__")
