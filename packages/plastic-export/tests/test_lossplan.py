"""Plans of bits: never over a budget, never worse with more of it; nothing read or written."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plastic_core import round_to_nearest
from plastic_core.quantize import BITS
from plastic_export.arrays import MLX_DTYPES
from plastic_export.lossplan import Offer, Offered, check_budgets, packed_bytes, plan_bits

quick = settings(deadline=None, derandomize=True, max_examples=40)


@st.composite
def offers(draw: st.DrawFn) -> list[Offered]:
    """Matrices whose cost falls by about four for each bit, as rounding errors do."""
    result = []
    for i in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(2, 40)), 64 * draw(st.integers(1, 3)))
        scale = draw(st.floats(1e-6, 1.0))
        noise = [draw(st.floats(0.5, 2.0)) for _ in BITS]
        packed = [
            Offer(bits, packed_bytes(shape, bits, 64, "BF16"), scale * factor / 4**bits)
            for bits, factor in zip(BITS, noise, strict=True)
        ]
        dense = 2 * math.prod(shape)
        options = (*packed, Offer(None, dense, 0.0))
        result.append(Offered(f"m{i}.weight", shape, "BF16", 64, dense, options))
    return result


@quick
@given(offers(), st.lists(st.floats(2.5, 16.0), min_size=1, max_size=4))
def test_a_plan_never_exceeds_its_budget_and_more_bytes_never_cost_more(
    matrices: list[Offered], budgets: list[float]
) -> None:
    plans = plan_bits(matrices, sorted(budgets))
    for plan in plans:
        assert plan.bits_per_weight <= plan.budget
        assert list(plan.chosen) == [m.name for m in matrices]
        assert all(plan.chosen[m.name] in m.offers for m in matrices)
        assert plan.lower_bound <= plan.cost
        assert plan.gap >= 0
        assert sum(plan.mix.values()) == len(matrices)
    costs = [plan.cost for plan in plans]
    assert costs == sorted(costs, reverse=True)


@quick
@given(offers().filter(lambda m: len(m) <= 3), st.floats(2.5, 16.0))
def test_no_other_choice_within_the_budget_is_predicted_to_cost_less(
    matrices: list[Offered], budget: float
) -> None:
    (plan,) = plan_bits(matrices, [budget])
    most = budget * plan.weights / 8
    costs = [
        math.fsum(o.cost for o in choice)
        for choice in product(*(m.offers for m in matrices))
        if sum(o.nbytes for o in choice) <= most
    ]
    assert plan.cost <= min(costs) * (1 + 1e-12)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("bits", BITS)
def test_the_planned_bytes_are_those_of_the_packed_matrix(
    bits: int, group_size: int, dtype: str
) -> None:
    W = np.random.default_rng(0).standard_normal((6, 128), np.float32)
    packed = round_to_nearest(W, bits, group_size=group_size, dtype=MLX_DTYPES[dtype])
    assert packed.nbytes == packed_bytes((6, 128), bits, group_size, dtype)


def test_the_whole_size_of_the_source_leaves_everything_as_it_is() -> None:
    options = (Offer(2, 10, 1.0), Offer(None, 64, 0.0))
    (plan,) = plan_bits([Offered("m", (4, 8), "BF16", 64, 64, options)], [16.0])
    assert plan.mix == {None: 1}
    assert plan.cost == 0.0


@pytest.mark.parametrize("budget", [0.0, -1.0, 2.4999, math.nan])
def test_a_budget_that_is_too_small_names_the_least_that_is_enough(budget: float) -> None:
    with pytest.raises(ValueError, match=r"at least 2\.5, .*got"):
        check_budgets([3.0, budget], weights=64, least=20, most=128)
    check_budgets([2.5], weights=64, least=20, most=128)


def test_the_least_that_is_named_is_enough_though_rounded() -> None:
    with pytest.raises(ValueError, match=r"at least 2\.2858"):
        check_budgets([1.0], weights=7, least=2, most=14)
    check_budgets([2.2858], weights=7, least=2, most=14)


@pytest.mark.parametrize("budget", [16.001, math.inf])
def test_a_budget_above_the_source_says_that_it_fits_dense(budget: float) -> None:
    with pytest.raises(ValueError, match=r"at most 16, .*fit dense"):
        check_budgets([budget], weights=64, least=20, most=128)


def test_no_matrix_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no matrix"):
        plan_bits([], [3.0])


def test_bits_that_are_not_offered_are_refused_by_name() -> None:
    m = Offered("a.weight", (4, 8), "BF16", 64, 64, (Offer(2, 10, 1.0), Offer(None, 64, 0.0)))
    with pytest.raises(ValueError, match=r"'a\.weight' must be one of 2, null, got 7"):
        m.offer(7)
