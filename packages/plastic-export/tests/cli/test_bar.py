"""The progress bar: silent unless it is needed, and never in the way of the items."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_export.cli import bar
from plastic_export.cli.bar import Pace, ProgressBar
from plastic_runtime import Noted, Weighted
from rich.console import Console


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=80), stream


@pytest.mark.parametrize("terminal", [True, False])
def test_every_item_passes_and_quick_work_is_silent(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bar, "PATIENCE", 600.0)  # quick on a busy machine too
    target, stream = console(terminal)
    assert list(ProgressBar(target)([1, 2, 3], "counting")) == [1, 2, 3]
    assert stream.getvalue() == ""


def shown_of(items: Sequence[int], *, terminal: bool, number: int = 0) -> str:
    """What a bar draws while the item of a number takes its time."""
    target, stream = console(terminal)
    for i, _ in enumerate(ProgressBar(target)(items, "counting")):
        if i == number:
            deadline = time.monotonic() + 10
            while "counting" not in stream.getvalue() and time.monotonic() < deadline and terminal:
                time.sleep(0.01)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue())  # colours and moves


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bar, "PATIENCE", 0.01)


@pytest.mark.usefixtures("impatient")
def test_long_work_shows_how_far_it_is_within_its_first_item_too() -> None:
    assert re.search(r"counting .*0/3.* 0:00:0\d so far", shown_of([1, 2, 3], terminal=True))
    assert shown_of([1, 2, 3], terminal=False) == ""


@pytest.mark.usefixtures("impatient")
def test_what_there_is_to_say_stands_beside_the_bar() -> None:
    drawn = shown_of(Noted([1, 2, 3], lambda: "loss 2.3 [x]"), terminal=True, number=1)
    assert re.search(r"1/3 +loss 2\.3 \[x\] .*left", drawn)


def test_steps_of_minutes_have_a_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = shown_left(monkeypatch, [1.0] * 5, [600.0] * 5)
    assert seen == [(2400, 2400), (1800, 1800), (1200, 1200), (600, 600)]


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def shown_left(
    monkeypatch: pytest.MonkeyPatch, items: Sequence[float], seconds: Sequence[float]
) -> list[tuple[float, float]]:
    """What a bar says is left after every item, and what is."""
    clock, target = Clock(), console(True)[0]
    monkeypatch.setattr(bar, "time", clock)
    seen: list[tuple[float, float]] = []
    paces: list[Pace] = []
    original = Pace.advance

    def advance(self: Pace, weight: float, seconds: float) -> None:
        original(self, weight, seconds)
        paces.append(self)

    monkeypatch.setattr(Pace, "advance", advance)
    for i, _ in enumerate(ProgressBar(target)(items, "working")):
        if i:
            seen.append((paces[-1].seconds_left or 0.0, sum(seconds[i:])))
        clock.now += seconds[i]
    return seen


@given(st.lists(st.floats(0.1, 100), min_size=20, max_size=60), st.randoms())
def test_the_time_left_is_right_after_a_tenth_of_unlike_items(
    sizes: list[float], random: Random
) -> None:
    """Seconds go with the weights, give or take a tenth."""
    seconds = [3 * size * random.uniform(0.9, 1.1) for size in sizes]
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = shown_left(monkeypatch, Weighted(sizes, sizes), seconds)
    late = [(said, left) for said, left in seen if left <= 0.9 * sum(seconds)]
    assert all(0.7 * left <= said <= 1.3 * left for said, left in late)


def test_without_weights_unlike_items_mislead(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [1.0] * 10 + [10.0] * 10
    said, left = shown_left(monkeypatch, sizes, sizes)[9]
    assert said < 0.2 * left


def test_items_of_an_earlier_run_say_nothing_about_the_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = [1e-5] * 50 + [4.0] * 50
    seen = shown_left(monkeypatch, Weighted(range(100), [1.0] * 100), seconds)
    assert all(said == 0 for said, _ in seen[:49])  # nothing is known
    assert seen[-1][0] == pytest.approx(4.0)
    assert seen[60][0] == pytest.approx(seen[60][1])
