"""A plan for a range is good at all of its sizes, and at the largest no better than one for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plastic_export.compression.nested import SizeRange, nested_plan
from plastic_export.plan.offers import Candidate, Offer, Offered, plan_bits
from plastic_export.plan.pricing import pareto
from plastic_select import Option, allocate

SHAPE = (64, 64)
SOURCE = 2 * 64 * 64


def offered(name: str, scale: float, decay: float) -> Offered:
    """A matrix whose cost falls by four with a bit, and by ``decay`` with four components."""
    m = Candidate(name, SHAPE, "BF16", 64, SOURCE)
    offers = []
    for bits in (2, 3, 4, 5):
        nbytes, cost = 512 * bits + 256, scale * 4.0**-bits
        offers.append(Offer(bits, nbytes, cost, group_size=64))
        if bits <= 4:
            offers += [
                Offer(bits, nbytes + 76 * rank, cost * decay ** (rank / 4), rank, 4, 64)
                for rank in range(4, 33, 4)
            ]
    return Offered(m, (*pareto(offers), Offer.unchanged(m)))


MATRICES = st.lists(
    st.builds(offered, st.just("m"), st.floats(0.1, 10), st.floats(0.3, 0.9)),
    min_size=1,
    max_size=4,
)


def named(matrices: list[Offered]) -> list[Offered]:
    return [
        Offered(Candidate(f"m{i}", SHAPE, "BF16", 64, SOURCE), m.offers)
        for i, m in enumerate(matrices)
    ]


def costs_within(plan: dict[str, Offer], matrices: list[Offered], sizes: SizeRange) -> list[float]:
    """What the folder of a plan costs, dialled to each size."""
    options = {}
    for m in matrices:
        top = plan[m.name]
        own = [o for o in m.offers if (o.bits, o.group_size) == (top.bits, top.group_size)]
        kept = [o for o in own if o == top or (o.rank < top.rank and o.factor_bits in (0, 4))]
        options[m.name] = [Option(o.nbytes, o.cost, o) for o in kept if o.bits or o == top]
    budgets = [math.floor(size * 64 * 64 * len(matrices) / 8) for size in sizes.sizes]
    return [a.cost for a in allocate(options, budgets)]


@settings(max_examples=25)
@given(MATRICES, st.floats(2.6, 3.5), st.floats(0.2, 1.0))
def test_it_fits_and_can_be_dialled_to_every_size(
    drawn: list[Offered], low: float, width: float
) -> None:
    matrices, sizes = named(drawn), SizeRange(low, low + width)
    plan = nested_plan(matrices, sizes)
    assert plan.bits_per_weight <= sizes.high
    nested = costs_within(dict(plan.chosen), matrices, sizes)
    for cost, alone in zip(nested, plan_bits(matrices, sizes.sizes), strict=True):
        assert cost >= alone.cost * (1 - 1e-9)
    assert list(nested) == sorted(nested, reverse=True)


def test_it_is_better_in_the_mean_than_a_plan_of_either_end() -> None:
    matrices = [offered(f"m{i}", 4.0**i, 0.5 + 0.1 * i) for i in range(4)]
    sizes = SizeRange(3.0, 3.75)
    alone = [p.cost for p in plan_bits(matrices, sizes.sizes)]
    nested = costs_within(dict(nested_plan(matrices, sizes).chosen), matrices, sizes)
    mean = (np.array(nested) / alone).mean()
    smallest = plan_bits(matrices, [sizes.low])[0]  # which has nothing to be dialled up to
    assert mean < (smallest.cost / np.array(alone)).mean()
    largest = dict(plan_bits(matrices, [sizes.high])[0].chosen)
    with pytest.raises(ValueError, match="must be at least"):  # its backbones are too large
        costs_within(largest, matrices, sizes)


def test_what_has_backbones_keeps_one_however_cheap_factors_seem() -> None:
    m = offered("m", 1.0, 0.5)
    bare = tuple(Offer(None, 76 * rank, 1e-6 / rank, rank, 4) for rank in range(4, 33, 4))
    both = Offered(m.matrix, (*bare, *m.offers))
    assert plan_bits([both], [3.0])[0].chosen["m"].bits is None
    assert nested_plan([both], SizeRange(3.0, 3.5)).chosen["m"].bits is not None
    alone = Offered(m.matrix, (*bare, m.offers[-1]))
    assert nested_plan([alone], SizeRange(3.0, 3.5)).chosen["m"] in bare


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            SizeRange(3.5, 3.0),
            "`range` must be a smaller and a larger size such as 3-3.5, got 3.5-3",
        ),
        (SizeRange(0.0, 3.0), "must be a smaller and a larger size"),
        (SizeRange(3.0, math.inf), "must be a smaller and a larger size"),
        (SizeRange(0.5, 3.0), r"`range` must begin at 2\.5 or above, got 0\.5-3"),
    ],
)
def test_what_is_no_range_is_refused(sizes: SizeRange, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        nested_plan([offered("m", 1.0, 0.5)], sizes)


@settings(max_examples=20)
@given(MATRICES, st.floats(2.6, 3.5), st.floats(0.2, 1.0))
def test_backbones_have_the_bits_of_a_plan_for_one_of_the_sizes(
    drawn: list[Offered], low: float, width: float
) -> None:
    matrices, sizes = named(drawn), SizeRange(low, low + width)
    plan, alone = nested_plan(matrices, sizes), plan_bits(matrices, sizes.sizes)
    for name, offer in plan.chosen.items():
        assert offer.bits in {p.chosen[name].bits for p in alone}
