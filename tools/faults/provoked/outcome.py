"""The outcome of provoking one kind of fault."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Outcome:
    """One row of the table.

    Attributes:
        fault: What was provoked.
        target: What must happen, every time.
        tried: How often it was provoked.
        right: How often it happened.
        remarks: Counts worth knowing, by name.
        wrong: What happened instead; the first few.
        seconds: How long it took.
    """

    fault: str
    target: str
    tried: int = 0
    right: int = 0
    remarks: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, problems: Sequence[str], what: str) -> None:
        """Count one attempt, which is right if it has no problems."""
        self.tried += 1
        self.right += not problems
        self.wrong += [f"{what}: {problem}" for problem in problems]

    def remark(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        self.remarks[name] = self.remarks.get(name, 0) + number

    @contextmanager
    def timed(self) -> Iterator[Outcome]:
        """Add the time of the block."""
        start = time.perf_counter()
        yield self
        self.seconds += time.perf_counter() - start


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the table, and after it what went wrong."""
    table = Table("fault", "must happen", "tried", "right", "of which", "s", show_lines=True)
    for o in outcomes:
        remarks = ", ".join(f"{count} {name}" for name, count in o.remarks.items())
        table.add_row(o.fault, o.target, str(o.tried), str(o.right), remarks, f"{o.seconds:.0f}")
    console = Console(width=150, highlight=False)
    console.print(table)
    for o in outcomes:
        for line in o.wrong[:10]:
            console.print(f"WRONG {o.fault}: {line}", markup=False)
