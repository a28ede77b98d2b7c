"""The goals of the bake-off, and the worst figure of a run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from rich.table import Table

UNHEALED, HEALED = ("mixed", "corrected", "adapter"), ("healed",)
OURS = {*UNHEALED, *HEALED, "feedback", "loss"}


class Figures(NamedTuple):
    """One row: predicted KL in nats, measured KL in nats by text."""

    predicted: float | None
    kl: dict[str, float]


Results = dict[str, dict[Any, dict[str, Figures]]]  # by table, budget and method


class Goal(NamedTuple):
    """The least KL of ours over the least one of theirs, and its limit at every budget."""

    what: str
    table: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    limits: dict[Any, float]


GOALS = (
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


def goal_figures(results: Results) -> Iterator[tuple[str, str, float, float]]:
    """Return the goals: the budget, the limit and the worst figure over all texts."""
    for what, table, ours, theirs, limits in GOALS:
        for budget, limit in limits.items():
            rows = results.get(table, {}).get(budget, {})
            left, right = ([rows[k].kl for k in keys if k in rows] for keys in (ours, theirs))
            if left and right:
                ratios = [min(r[t] for r in left) / min(r[t] for r in right) for t in left[0]]
                yield what, shown(budget), limit, max(ratios)
    for table, budgets in results.items():
        mine = [{k: row for k, row in rows.items() if k in OURS} for rows in budgets.values()]
        found = [row for rows in mine for row in rows.values()]
        pairs = [(p, kl) for p, kls in found if p is not None for kl in kls.values() if kl < 0.02]
        if pairs:
            worst = max(abs(predicted / kl - 1) for predicted, kl in pairs)
            yield f"{table}: |predicted / measured - 1|, KL < 20", "all", 0.25, worst
        steps = [(a[k].kl, b[k].kl) for a, b in pairwise(mine) for k in a.keys() & b.keys()]
        if steps:
            worst = max(more[t] / less[t] for less, more in steps for t in less)
            yield f"{table}: KL with more bytes / with fewer", "all", 1.0, worst


def goal_table(results: Results) -> Table:
    """The targets, each with the worst figure of this run."""
    table = Table("what", "budget", "target", "worst", "met", title="Targets", box=None)
    for what, budget, limit, worst in goal_figures(results):
        met = "yes" if worst <= limit else "no"
        table.add_row(what, budget, f"<= {limit:g}", f"{worst:.3f}", met)
    return table


def shown(budget: Any) -> str:
    return "{}+{:g}".format(*budget) if isinstance(budget, tuple) else f"{budget:g}"
