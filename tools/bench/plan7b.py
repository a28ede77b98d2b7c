"""A plan for a model of 7 billion parameters: the allocation of all of it.

    uv run tools/bench/plan7b.py

The 226 matrices of a Llama of 32 layers, each with all the options that the format offers at its
shape, priced by a synthetic spectrum (``i^-p``, four times less with every bit). Seconds of the
processor are of one budget, of ten, and of the curve that is plotted; the time to build the options
is not among them: that is pricing, the rows ``price`` and ``paper`` of ``cost.py``.
"""

from __future__ import annotations

import numpy as np
from costs.shapes import llama
from meters import spent
from plastic_export import Candidate, Choices, LossPlan, Offer, Offered, plan_bits
from plastic_export.format import FORMATS, PLAN_FORMATS
from plastic_export.plan import (
    backbones_of,
    choices_for,
    corrected_backbones,
    factor_bytes,
    offered_ranks,
    packed_bytes,
    pareto,
)
from plastic_export.reporting import plan_frontier
from rich.console import Console
from rich.table import Table

BUDGETS = (2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0)


def offered(m: Candidate, number: int, choices: Choices) -> Offered:
    """All that pricing would offer, at made-up costs."""
    rng, own = np.random.default_rng(number), choices_for(m, choices)
    s = np.arange(1.0, min(m.shape) + 1) ** -rng.uniform(0.3, 1.2)
    left = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0) / (s @ s)
    scale, offers = 1e-2 * np.exp(rng.normal()), list[Offer]()
    bases = [backbone(m, *packing, scale) for packing in backbones_of(m, own)]
    offers += bases
    corrected = corrected_backbones(m, own)
    beside = [b for b in bases if (b.bits, b.group_size) in corrected]
    for base in [*beside, Offer(None, 0, scale)]:
        for bits in own.factor_bits if base.bits or own.bare else ():
            for rank in offered_ranks(m, base, bits, own):
                nbytes = base.nbytes + factor_bytes(m.shape, rank, bits, m.dtype)
                cost = base.cost * (left[rank] + 4.0**-bits)
                offers.append(base._replace(nbytes=nbytes, cost=cost, rank=rank, factor_bits=bits))
    kept = offers if own.ranks else pareto(offers)
    return Offered(m, (*kept, Offer.unchanged(m)))


def backbone(m: Candidate, bits: int, group_size: int, scale: float) -> Offer:
    """A backbone whose cost falls by four with every bit, and a little with smaller groups."""
    cost = scale * 4.0**-bits * (group_size / 64) ** 0.3
    nbytes = packed_bytes(m.shape, bits, group_size, m.dtype)
    return Offer(bits, nbytes, cost, group_size=group_size)


def choices_of(format: str) -> Choices:
    """What a format of plans offers."""
    return FORMATS[format].choices or Choices()


def allocation(format: str) -> list[str]:
    """One row: how many matrices and options, and the seconds."""
    matrices = [offered(m, i, choices_of(format)) for i, m in enumerate(llama())]
    one_rank = FORMATS[format].one_rank
    plan = LossPlan({"name": ""}, {}, ("", ""), tuple(matrices), (), 0, (), format)
    options = sum(len(m.offers) for m in matrices)
    one, _ = spent(lambda: plan_bits(matrices, [3.5], one_rank=one_rank))
    ten, plans = spent(lambda: plan_bits(matrices, BUDGETS, one_rank=one_rank))
    curve, _ = spent(lambda: plan_frontier(plan))
    gap = max(p.gap for p in plans)
    seconds = [f"{s.cpu:.2f} s" for s in (one, ten, curve)]
    return [format, str(len(matrices)), f"{options:,}", *seconds, f"{gap:.1e}"]


def main() -> None:
    """Print the table."""
    columns = ("format", "matrices", "options", "one budget", "ten budgets", "curve of 40", "gap")
    table = Table(*columns, title="Allocation", box=None)
    for format in PLAN_FORMATS:
        table.add_row(*allocation(format))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
