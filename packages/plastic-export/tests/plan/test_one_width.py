"""The plain choice beside a plan, and which of both is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core.factors import BITS, GROUP_SIZES
from plastic_export.plan.budgets import Budget
from plastic_export.plan.choices import plain_offer
from plastic_export.plan.offers import BitsPlan, Candidate, Offer, Offered, Tried, plan_bits
from plastic_export.plan.one_width import one_width
from plastic_export.plan.pricing import pareto
from plastic_export.plan.tried import better

WEIGHT = st.sampled_from([1e-4, 1e-3, 1e-2])


def offered(name: str, shape: tuple[int, int], sensitivity: float) -> Offered:
    """A matrix whose cost falls by four for every bit and rises with the group."""
    m = Candidate(name, shape, "BF16", 64, 2 * shape[0] * shape[1])
    made = [
        plain_offer(m, bits, size, sensitivity * 4.0**-bits * (1 + size / 256))
        for bits in BITS
        for size in GROUP_SIZES
    ]
    return Offered(m, (*pareto(made), Offer.unchanged(m)))


def planned(matrices: list[Offered], bits_per_weight: float) -> tuple[BitsPlan, Budget]:
    budget = Budget("bits_per_weight", bits_per_weight)
    (plan,) = plan_bits(matrices, [budget])
    return plan, budget


@given(st.lists(WEIGHT, min_size=1, max_size=5), st.floats(2.3, 8.0))
def test_it_fits_and_is_predicted_to_cost_no_less_than_the_plan(
    sensitivities: list[float], bits_per_weight: float
) -> None:
    matrices = [offered(f"w{i}", (64, 128), s) for i, s in enumerate(sensitivities)]
    plan, budget = planned(matrices, bits_per_weight)
    plain = one_width(matrices, plan, budget)
    assert plain is not None
    assert plain.bits_per_weight <= bits_per_weight
    assert plain.cost >= plan.cost * (1 - 1e-9)
    assert len({offer.choice for offer in plain.chosen.values()}) == 1


@pytest.mark.parametrize(
    ("bits_per_weight", "bits", "group_size"), [(2.5, 2, 64), (3.0, 2, 32), (3.49, 3, 128)]
)
def test_it_is_the_best_one_width_that_fits(
    bits_per_weight: float, bits: int, group_size: int
) -> None:
    matrices = [offered("w", (64, 128), 1e-2), offered("v", (128, 128), 1e-3)]
    plan, budget = planned(matrices, bits_per_weight)
    plain = one_width(matrices, plan, budget)
    assert plain is not None
    assert {(o.bits, o.group_size) for o in plain.chosen.values()} == {(bits, group_size)}


def test_below_the_smallest_width_there_is_none() -> None:
    matrices = [offered("w", (64, 128), 1e-2)]
    plan, _ = planned(matrices, 2.5)
    assert one_width(matrices, plan, Budget("bits_per_weight", 2.0)) is None


def test_a_matrix_that_is_smaller_as_it_is_stays() -> None:
    small = offered("w", (64, 128), 1e-2)
    packed = replace(small.matrix, source_bytes=100)
    matrices = [Offered(packed, (Offer.unchanged(packed),)), offered("v", (64, 128), 1e-2)]
    plan, budget = planned(matrices, 1.4)
    plain = one_width(matrices, plan, budget)
    assert plain is not None
    assert plain.chosen["w"].kind == "source"
    assert plain.chosen["v"].bits == 2


def test_what_costs_less_as_a_whole_is_taken_whatever_the_sum_says() -> None:
    plan = BitsPlan(3.0, "3", 100, 0.0, {"w": Offer(2, 10, 1e-3)}, Tried(3e-3, 0.0, 1e-3))
    plain = replace(plan, tried=Tried(2e-3, 0.0, 5e-3), by="one width")
    assert better(plan, plain) == replace(plain, rival_kl=3e-3)
    assert better(plan, replace(plain, tried=plan.tried)).by == "prices"


def test_a_prediction_is_what_the_trial_found_and_moves_with_edited_choices() -> None:
    plan = BitsPlan(3.0, "3", 100, 0.0, {"w": Offer(2, 10, 1e-3)}, Tried(3e-3, 6e-4, 1e-3))
    assert plan.predicted == pytest.approx(3e-3)
    edited = replace(plan, chosen={"w": Offer(3, 20, 2e-4)})
    assert edited.predicted == pytest.approx(6e-4)
    assert plan.interval is not None
    low, high = plan.interval
    assert low < plan.predicted < high
    assert low * high == pytest.approx(plan.predicted**2)
    assert replace(plan, tried=None).predicted == plan.cost
    assert replace(plan, tried=None).interval is None
