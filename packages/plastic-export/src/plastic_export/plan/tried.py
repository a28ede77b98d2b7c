"""The plan of every budget that costs least as a whole: that of the prices, or one width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from plastic_runtime import Track, untracked

from plastic_export.plan.budgets import Budget
from plastic_export.plan.offers import BitsPlan, Offered, Overhead, no_overhead
from plastic_export.plan.one_width import one_width
from plastic_export.plan.trial import PlanTrial

CLEAR = 0.8
"""A plan that costs no more than this part of the prices of one width is the better one: as a whole
one width costs 0.9 times the sum of its prices or more (heuristic: see the decision on trials)."""


def tried_plans(
    plans: Sequence[BitsPlan],
    budgets: Sequence[Budget],
    matrices: Sequence[Offered],
    trial: PlanTrial,
    *,
    left_bytes: int = 0,
    overhead: Overhead = no_overhead,
    track: Track = untracked,
) -> tuple[BitsPlan, ...]:
    """Try the plan of every budget, and one width for all beside it; return the better ones.

    One width is not tried where its prices leave no doubt (`CLEAR`).

    Args:
        plans: The plans by prices, one per budget.
        budgets: The budgets.
        matrices: What each matrix offers.
        trial: Tries a plan.
        left_bytes: As `plan_bits` has it.
        overhead: As `plan_bits` has it.
        track: Wraps the loop over the budgets.

    Returns:
        One plan per budget, each with its trial, by whom it was chosen and what the other was found
        to cost.
    """
    pairs = list(zip(plans, budgets, strict=True))
    found = list[BitsPlan]()
    for plan, budget in track(pairs, "trying plans"):
        priced = replace(plan, tried=trial.of(plan))
        plain = one_width(matrices, plan, budget, left_bytes=left_bytes, overhead=overhead)
        if plain is None or plain.chosen == plan.chosen or priced.predicted <= CLEAR * plain.cost:
            found.append(priced)
        else:
            found.append(better(priced, replace(plain, tried=trial.of(plain), by="one width")))
    return tuple(found)


def better(priced: BitsPlan, plain: BitsPlan) -> BitsPlan:
    """Return the one of two tried plans that costs less, the first where they cost alike."""
    taken, other = (plain, priced) if plain.predicted < priced.predicted else (priced, plain)
    return replace(taken, rival_kl=other.predicted)
