"""A progress bar with the time left: only on a terminal, only for what takes over two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer
from typing import TypeVar

from plastic_runtime import Noted, Weighted
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from plastic_export.process.interruption import between

T = TypeVar("T")

PATIENCE = 2.0  # seconds before a bar appears
PASSED_OVER = 1e-3  # seconds below which an item was there already, as where a run goes on


@dataclass
class Pace:
    """How fast the work of a loop is done.

    Attributes:
        left: Work that is left.
        done: Work that took its time.
        seconds: That time.

    Examples:
        >>> pace = Pace(left=9.0)
        >>> pace.advance(3.0, seconds=2.0)
        >>> pace.seconds_left
        4.0
    """

    left: float
    done: float = 0.0
    seconds: float = 0.0

    def advance(self, weight: float, seconds: float) -> None:
        """Count an item; one that was passed over says nothing about the others."""
        self.left -= weight
        if seconds >= PASSED_OVER:
            self.done += weight
            self.seconds += seconds

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take at the mean pace; None while that is not known."""
        return self.seconds * max(self.left, 0.0) / self.done if self.done else None


class ProgressBar:
    """A ``Track`` that draws on standard error.

    Args:
        console: Where to draw; nothing is drawn unless it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, items: Sequence[T], description: str) -> Iterator[T]:
        """Yield the items, and show how many are done once ``PATIENCE`` is over.

        The bar and the time left go by the weights of items that are `Weighted`; what there is to
        say of `Noted` ones stands beside them. An interruption that was lost while an item was
        worked on is raised after it.
        """
        if not self.console.is_terminal:
            yield from between(items)
            return
        weights = items.weights if isinstance(items, Weighted) else [1.0] * len(items)
        pace = Pace(sum(weights))
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}/{task.fields[items]}"),
            TextColumn("{task.fields[note]}", markup=False),
            _TimeLeft(),
            console=self.console,
            transient=True,
            redirect_stdout=False,
        )
        task = bar.add_task(
            description, total=pace.left, count=0, items=len(items), pace=pace, note=""
        )
        before = time.monotonic()
        with _shown_later(bar):
            for count, (weight, item) in enumerate(zip(weights, between(items), strict=True), 1):
                yield item
                now = time.monotonic()
                pace.advance(weight, now - before)
                before = now
                note = items.note() if isinstance(items, Noted) else ""
                bar.update(task, advance=weight, count=count, note=note)


@contextmanager
def _shown_later(bar: Progress) -> Iterator[None]:
    """Show a bar once ``PATIENCE`` is over, in the middle of an item too, and remove it."""
    starter = Timer(PATIENCE, bar.start)
    starter.daemon = True
    starter.start()
    try:
        yield
    finally:
        starter.cancel()
        starter.join()
        bar.stop()


class _TimeLeft(ProgressColumn):
    """The time that a `Pace` says is left, or that the first item has taken so far.

    The column that rich has takes all items to be alike, and forgets what took over half a minute.
    """

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.fields["pace"].seconds_left
        what, shown = ("so far", task.elapsed or 0.0) if left is None else ("left", left)
        minutes, seconds = divmod(round(shown), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02}:{seconds:02} {what}", style="progress.remaining")
