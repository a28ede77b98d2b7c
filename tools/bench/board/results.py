"""The rows that are kept, put in order: by what they share, by table, budget and method."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kept.measurements import STOPPED, Figures, KeptFigures

OWN = ("table", "method", "budget", "steps", "rates")
"""The settings of a row that others of its table do not share."""


class KeptRow(NamedTuple):
    """A row that is kept.

    Attributes:
        method: Who made it.
        budget: What it was given.
        tuned: Steps of what is tuned; 0 for what is not.
        figures: What was found.
    """

    method: str
    budget: Any
    tuned: int
    figures: Figures

    @property
    def is_measured(self) -> bool:
        """Whether it was not stopped."""
        return STOPPED not in self.figures

    @property
    def label(self) -> str:
        """The method, with its steps."""
        return f"{self.method} ({self.tuned} steps)" if self.tuned else self.method

    def each(self, name: str) -> dict[str, float]:
        """Return one figure of every text that has it."""
        found = {text: seen[name] for text, seen in self.figures["texts"].items()}
        return {text: value for text, value in found.items() if value is not None}


class Comparable(NamedTuple):
    """The rows that share all settings, by table.

    Attributes:
        shared: These settings.
        tables: The rows by table, by increasing budget.
    """

    shared: dict[str, Any]
    tables: dict[str, list[KeptRow]]

    def measured(self, table: str) -> Iterator[KeptRow]:
        """Yield the rows of a table that were not stopped."""
        return (row for row in self.tables.get(table, []) if row.is_measured)


def grouped(kept: Iterable[KeptFigures]) -> list[Comparable]:
    """Return all rows, in groups.

    Args:
        kept: What a file of measurements holds.
    """
    groups = dict[str, Comparable]()
    for _, settings, figures in kept:
        shared = {name: value for name, value in settings.items() if name not in OWN}
        group = groups.setdefault(json.dumps(shared, sort_keys=True), Comparable(shared, {}))
        budget = settings["budget"]
        row = KeptRow(
            settings["method"],
            tuple(budget) if isinstance(budget, list) else budget,
            settings.get("steps", 0),
            figures,
        )
        group.tables.setdefault(settings["table"], []).append(row)
    for group in groups.values():
        for rows in group.tables.values():
            rows.sort(key=lambda row: row.budget)
    return [*groups.values()]
