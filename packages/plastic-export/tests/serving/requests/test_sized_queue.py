"""Requests of one size go together, and none waits for ever."""

from __future__ import annotations

from queue import Empty

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_export.serving.requests.sized_queue import SizedQueue

Request = tuple[str, int]


def queue_of(turn: int) -> SizedQueue:
    return SizedQueue(lambda request: request[0], turn)


@given(st.text("abc", max_size=40), st.integers(1, 8))
def test_everything_comes_out_once_and_in_order_within_a_size(sizes: str, turn: int) -> None:
    queue = queue_of(turn)
    for request in enumerate(sizes):
        queue.put(request[::-1])
    out: list[Request] = [queue.get_nowait() for _ in sizes]
    with pytest.raises(Empty):
        queue.get_nowait()
    assert sorted(number for _, number in out) == list(range(len(sizes)))
    for size in "abc":
        numbers = [number for own, number in out if own == size]
        assert numbers == sorted(numbers)


def test_what_waits_together_is_handed_out_together() -> None:
    queue = queue_of(32)
    for number in range(60):
        queue.put(("abc"[number % 3], number))
    sizes = "".join(queue.get_nowait()[0] for _ in range(60))
    assert sizes == "a" * 20 + "b" * 20 + "c" * 20


@given(st.integers(1, 8), st.integers(1, 5))
def test_a_stream_of_one_size_starves_no_other(turn: int, others: int) -> None:
    queue = queue_of(turn)
    queue.put(("stream", 0))
    queue.get_nowait()
    for number in range(others):
        queue.put((f"other {number}", 0))
    taken = []
    for number in range(200):  # whatever is taken, another of the stream comes
        queue.put(("stream", number))
        taken.append(queue.get_nowait()[0])
    last = max(taken.index(f"other {number}") for number in range(others))
    assert last <= turn + others


def test_it_tells_what_waits() -> None:
    queue = queue_of(4)
    for size in "aab":
        queue.put((size, 0))
    assert queue.waiting() == {"a": 2, "b": 1}
    queue.get_nowait()
    queue.get_nowait()
    assert queue.waiting() == {"b": 1}
    assert queue.qsize() == 1
