"""A progress bar with the time left: only on a terminal, only for what takes over two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from plastic_export.process.interruption import between

T = TypeVar("T")

PATIENCE = 2.0  # seconds before a bar appears


class ProgressBar:
    """A ``Track`` that draws on standard error.

    Args:
        console: Where to draw; nothing is drawn unless it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, items: Sequence[T], description: str) -> Iterator[T]:
        """Yield the items, and show how many are done once ``PATIENCE`` is over.

        An interruption that was lost while an item was worked on is raised after it.
        """
        if not self.console.is_terminal:
            yield from between(items)
            return
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        task = bar.add_task(description, total=len(items))
        started = time.monotonic()
        try:
            for item in between(items):
                yield item
                bar.advance(task)
                if not bar.live.is_started and time.monotonic() - started > PATIENCE:
                    bar.start()
        finally:
            bar.stop()
