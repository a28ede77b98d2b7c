"""The plain choice that a plan must not be worse than: one width for all matrices. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from plastic_core.factors import BITS, GROUP_SIZES

from plastic_export.plan.budgets import Budget
from plastic_export.plan.offers import (
    BitsPlan,
    Offer,
    Offered,
    Overhead,
    no_overhead,
    packed_bytes,
    totals_of,
)


def one_width(
    matrices: Sequence[Offered],
    plan: BitsPlan,
    budget: Budget,
    *,
    left_bytes: int = 0,
    overhead: Overhead = no_overhead,
) -> BitsPlan | None:
    """Return the best plan of one number of bits and one group size for all, within a budget.

    A matrix that offers less cost in no more bytes takes that; one that is smaller as it is in the
    source stays.

    Args:
        matrices: What each matrix offers.
        plan: The plan of that budget by prices; all but its choices is taken over.
        budget: The budget.
        left_bytes: As `plan_bits` has it.
        overhead: As `plan_bits` has it.

    Returns:
        The plan whose costs add up to the least; None where none fits.

    Examples:
        >>> plans = read_plan("plan.json")
        >>> plain = one_width(plans.matrices, plans.budget(), Budget("bits_per_weight", 4.5))
        >>> plain.nbytes <= 4.5 / 8 * plain.weights, plain.cost >= plans.budget().cost
        (True, True)
    """
    extra = overhead if budget.counts_headers else no_overhead
    allowed = budget.nbytes(totals_of([m.matrix for m in matrices], left_bytes, extra))
    best: BitsPlan | None = None
    for bits, group_size in product(BITS, GROUP_SIZES):
        chosen = {m.name: _of_width(m, bits, group_size) for m in matrices}
        nbytes = sum(chosen[m.name].nbytes + extra(m.matrix, chosen[m.name]) for m in matrices)
        cost = math.fsum(offer.cost for offer in chosen.values())
        if nbytes <= allowed and (best is None or cost < best.cost):
            best = replace(plan, chosen=chosen)
    return best


def _of_width(m: Offered, bits: int, group_size: int) -> Offer:
    """Return the cheapest offer without a rank that takes no more bytes than a width does."""
    matrix = m.matrix
    size = group_size if matrix.shape[1] % group_size == 0 else matrix.group_size
    most = matrix.matrices * packed_bytes(matrix.shape, bits, size, matrix.dtype)
    plain = [offer for offer in m.offers if not offer.rank]
    within = [offer for offer in plain if offer.nbytes <= most]
    if within:
        return min(within, key=lambda offer: (offer.cost, offer.nbytes))
    return min(plain, key=lambda offer: offer.nbytes)
