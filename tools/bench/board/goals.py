"""The targets of the bake-off, each with the worst figure of the rows that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from bakeoff.setting import shown
from rich import box
from rich.table import Table

from board.results import Comparable, KeptRow

UNHEALED, HEALED = ("mixed", "corrected", "adapter"), ("mixed-healed", "healed")
OURS = {*UNHEALED, *HEALED, "feedback", "loss"}
MEASURES = {"kl": "KL", "kl_999": "99.9 %"}
BY_A_TENTH = 1.1


class Goal(NamedTuple):
    """The least KL of ours over the least one of theirs, and its limit at every budget.

    Attributes:
        what: What is compared.
        table: Which rows.
        ours: Methods, the best of which counts.
        theirs: Those it is compared with.
        limits: The limit by budget.
    """

    what: str
    table: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    limits: dict[Any, float]


REAL = (
    Goal(
        what="mixed / best of RTN, GPTQ, AWQ, dynamic",
        table="bits",
        ours=("mixed",),
        theirs=("rounding", "gptq", "awq", "dynamic"),
        limits={2.5: 0.6, 3.5: 0.6, 4.5: 0.6},
    ),
    Goal(
        what="mixed, healed / best of DWQ, AutoRound",
        table="bits",
        ours=("mixed-healed",),
        theirs=("dwq", "autoround", "autoround-mixed"),
        limits={2.5: 0.75, 3.5: 0.75, 4.5: 0.75},
    ),
    Goal("corrected / mixed", "bits", ("corrected",), ("mixed",), {2.5: 0.8}),
)
"""The targets on a real model: both measures, on every text."""
SHIPPED = (
    Goal("best unhealed / GPTQ", "bits", UNHEALED, ("gptq",), {2.5: 0.5, 3.5: 0.35, 4.5: 0.25}),
    Goal("healed / unhealed", "bits", HEALED, UNHEALED, {2.5: 0.6, 3.5: 0.6, 4.5: 0.6}),
    Goal(
        what="best of ours / best of AWQ, DWQ, dynamic",
        table="bits",
        ours=UNHEALED + HEALED,
        theirs=("awq", "dwq", "dynamic"),
        limits={2.5: 0.7, 3.5: 0.7, 4.5: 0.7},
    ),
    Goal("mixed bits / GPTQ", "bits", ("mixed",), ("gptq",), {2.5: 1.0, 3.5: 0.6, 4.5: 0.6}),
    Goal("ours / SVD-LLM", "rank", ("loss",), ("svd-llm",), {0.8: 0.08, 0.6: 0.12, 0.4: 0.22}),
    Goal("ours / QERA", "correction", ("loss",), ("qera",), {(2, 0.25): 0.6, (3, 0.5): 0.6}),
)
"""Those that were set on small checkpoints: mean KL alone, the worst text."""


class TargetLine(NamedTuple):
    """One target.

    Attributes:
        what: What is compared.
        budget: At which budget.
        limit: What the figures should not exceed.
        by_text: The figure of every text.
    """

    what: str
    budget: str
    limit: float
    by_text: dict[str, float]

    @property
    def verdict(self) -> str:
        """Met on all texts, or missed where; by more than a tenth, or by less."""
        missed = {t: x for t, x in self.by_text.items() if x > self.limit}
        if not missed:
            return "met"
        far = [t for t, x in missed.items() if x > BY_A_TENTH * self.limit]
        if not far and len(missed) < len(self.by_text) / 2:
            return f"met but for {', '.join(missed)}, by less than a tenth"
        return f"missed on {', '.join(missed)}"


def _ratios(ours: list[KeptRow], theirs: list[KeptRow], measure: str) -> dict[str, float]:
    """Return the least of ours over the least of theirs, by text."""
    left, right = ([row.each(measure) for row in rows] for rows in (ours, theirs))
    texts = set.intersection(*({*each} for each in left + right))
    return {t: min(r[t] for r in left) / min(r[t] for r in right) for t in sorted(texts)}


def ratio_lines(group: Comparable, goals: tuple[Goal, ...], measure: str) -> Iterator[TargetLine]:
    """Yield the targets that there are rows for."""
    for what, table, ours, theirs, limits in goals:
        for budget, limit in limits.items():
            rows = [row for row in group.measured(table) if row.budget == budget]
            left, right = ([r for r in rows if r.method in m] for m in (ours, theirs))
            if left and right and (found := _ratios(left, right, measure)):
                yield TargetLine(f"{what}: {MEASURES[measure]}", shown(budget), limit, found)


def other_lines(group: Comparable) -> Iterator[TargetLine]:
    """Yield how well predictions hold, and whether more bytes always buy less KL."""
    for table in group.tables:
        rows = [row for row in group.measured(table) if row.method in OURS]
        found = dict[str, float]()
        for row in rows:
            predicted = row.figures["predicted"]
            for text, kl in row.each("kl").items() if predicted else ():
                found[text] = max(found.get(text, 0.0), abs(predicted / kl - 1))
        if found:
            yield TargetLine(f"{table}: predicted / measured, distance from 1", "all", 0.25, found)
        by_label = dict[str, list[KeptRow]]()
        for row in rows:
            by_label.setdefault(row.label, []).append(row)
        worst = dict[str, float]()
        for same in by_label.values():
            for less, more in pairwise(row.each("kl") for row in same):
                for text in less:
                    worst[text] = max(worst.get(text, 0.0), more[text] / less[text])
        if worst:
            yield TargetLine(f"{table}: KL with more bytes / with fewer", "all", 1.0, worst)


def goal_table(group: Comparable) -> Table:
    """Return the targets, each with its figure on every text."""
    texts = [*group.shared["texts"]]
    table = Table("what", "bits", "target", *texts, "verdict", box=box.MARKDOWN)
    for line in (
        *ratio_lines(group, REAL, "kl"),
        *ratio_lines(group, REAL, "kl_999"),
        *ratio_lines(group, SHIPPED, "kl"),
        *other_lines(group),
    ):
        figures = (f"{line.by_text[t]:.3f}" if t in line.by_text else "" for t in texts)
        table.add_row(line.what, line.budget, f"<= {line.limit:g}", *figures, line.verdict)
    return table
