"""Plans of bits: never over a budget, never worse with more of it; nothing read or written."""

from __future__ import annotations

import math
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plastic_core import Correction, Factors, GramRoot, round_to_nearest
from plastic_core.factors import BITS
from plastic_core.files import MLX_DTYPES
from plastic_export.compression.plan_file import LossPlan
from plastic_export.plan.budgets import Budget, Totals, check_budget, parse_size
from plastic_export.plan.offers import (
    Candidate,
    Offer,
    Offered,
    factor_bytes,
    packed_bytes,
    plan_bits,
)
from plastic_export.reporting.plots.plan_plot import plan_frontier

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
            Offer(
                bits, packed_bytes(shape, bits, 64, "BF16"), scale * factor / 4**bits, group_size=64
            )
            for bits, factor in zip(BITS, noise, strict=True)
        ]
        dense = 2 * math.prod(shape)
        options = (*packed, Offer(None, dense, 0.0))
        result.append(Offered(Candidate(f"m{i}.weight", shape, "BF16", 64, dense), options))
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
    (plan,) = plan_bits([Offered(Candidate("m", (4, 8), "BF16", 64, 64), options)], [16.0])
    assert plan.mix == {"source": 1}
    assert plan.cost == 0.0


def bits_per_weight(value: float) -> Budget:
    return Budget("bits_per_weight", value)


@pytest.mark.parametrize("budget", [0.0, -1.0, 2.4999, math.nan])
def test_a_budget_that_is_too_small_names_the_least_that_is_enough(budget: float) -> None:
    totals = Totals(weights=64, source_bytes=128, left_bytes=1000)
    with pytest.raises(ValueError, match=r"at least 2\.5, .*got"):
        check_budget(bits_per_weight(budget), 20, totals)
    check_budget(bits_per_weight(2.5), 20, totals)


def test_the_least_that_is_named_is_enough_though_rounded() -> None:
    totals = Totals(weights=7, source_bytes=14, left_bytes=0)
    with pytest.raises(ValueError, match=r"at least 2\.2858"):
        check_budget(bits_per_weight(1.0), 2, totals)
    check_budget(bits_per_weight(2.2858), 2, totals)


@pytest.mark.parametrize("budget", [16.2, math.inf])
def test_a_budget_above_the_source_says_that_it_fits_dense(budget: float) -> None:
    with pytest.raises(ValueError, match=r"at most 16, .*fit dense"):
        check_budget(bits_per_weight(budget), 20, Totals(64, 128, 0))


def test_a_size_counts_what_is_left_as_it_is_and_a_fraction_does_not() -> None:
    totals = Totals(weights=64, source_bytes=128, left_bytes=1000)
    assert Budget("size", 1040.7).nbytes(totals) == 40
    assert Budget("keep", 0.25).nbytes(totals) == 32
    assert bits_per_weight(4.0).nbytes(totals) == 32
    with pytest.raises(ValueError, match=r"`size` must be at least 1,020 bytes, .* got 1010 bytes"):
        check_budget(Budget("size", 1010), 20, totals)
    with pytest.raises(ValueError, match=r"`keep` must be at least 0\.1563, .* got keep 0\.1"):
        check_budget(Budget("keep", 0.1), 20, totals)
    with pytest.raises(ValueError, match=r"`size` must be at most 1,128 bytes, .* fit dense"):
        check_budget(Budget("size", 2000), 20, totals)


@pytest.mark.parametrize(
    ("text", "size"),
    [("3MB", 3e6), ("2.5 GiB", 2.5 * 2**30), ("3000000", 3e6), ("7kb", 7e3), (".5MiB", 2**19)],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "3 TB", "-3MB", "1e6", "3MB4"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size must be"):
        parse_size(text)


def corrected(name: str, gains: dict[int, float]) -> Offered:
    """A matrix at 8 bytes and a cost of 8, which corrections of these ranks lower."""
    ranks = [Offer(2, 8 + rank, 8.0 - gain, rank, 16, 64) for rank, gain in gains.items()]
    m = Candidate(name, (8, 8), "BF16", 64, 128)
    return Offered(m, (Offer(2, 8, 8.0, group_size=64), *ranks, Offer.unchanged(m)))


def test_an_adapter_has_the_one_rank_that_is_best_over_all_matrices() -> None:
    matrices = [corrected("a", {1: 4.0, 2: 5.0}), corrected("b", {1: 1.0, 2: 5.0})]
    budget = Budget("keep", 20 / 256)
    (free,) = plan_bits(matrices, [budget])
    (one,) = plan_bits(matrices, [budget], one_rank=True)
    assert [o.rank for o in free.chosen.values()] == [2, 2]
    assert [o.rank for o in one.chosen.values()] == [2, 2]
    (free,) = plan_bits(matrices, [Budget("keep", 19 / 256)])
    (one,) = plan_bits(matrices, [Budget("keep", 19 / 256)], one_rank=True)
    assert [o.rank for o in free.chosen.values()] == [1, 2]
    assert sorted(o.rank for o in one.chosen.values()) in ([0, 2], [1, 1])
    assert one.cost >= free.cost


@pytest.mark.parametrize("bits", [*BITS, 16])
def test_the_planned_bytes_of_a_correction_are_those_of_its_arrays(bits: int) -> None:
    rng = np.random.default_rng(0)
    U, S, Vh = (rng.standard_normal(s, np.float32) for s in ((64, 5), (5,), (5, 96)))
    factors = Factors(*map(mx.array, (U, abs(S), Vh)))
    part = Correction.rounded(factors, bits, inputs=GramRoot(None), outputs=GramRoot(None))
    assert part.nbytes == factor_bytes((64, 96), 5, bits, "BF16")


def test_no_matrix_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no matrix"):
        plan_bits([], [3.0])


def test_bits_that_are_not_offered_are_refused_by_name() -> None:
    matrix = Candidate("a.weight", (4, 8), "BF16", 64, 64)
    fine, coarse = Offer(2, 12, 1.0, group_size=32), Offer(2, 10, 2.0, group_size=128)
    m = Offered(matrix, (coarse, fine, Offer.unchanged(matrix)))
    with pytest.raises(ValueError, match=r"'a\.weight' must be one of 2, null, .* got 7"):
        m.offer(7)
    assert [m.offer(2, group_size=size) for size in (32, 128)] == [fine, coarse]
    with pytest.raises(
        ValueError, match=r"`group_size` .* in 2 bits must be one of 32, 128, got 64"
    ):
        m.offer(2)
    m = corrected("a.weight", {1: 1.0, 4: 2.0})
    assert m.offer(2, 4, 16).nbytes == 12
    with pytest.raises(ValueError, match=r"`rank` of 'a\.weight' must be one of 1, 4, got 3"):
        m.offer(2, 3, 16)


def test_the_curve_of_a_plan_falls_from_the_least_size_to_that_of_the_source() -> None:
    matrices = (corrected("a", {1: 4.0, 2: 5.0}), corrected("b", {1: 1.0, 2: 5.0}))
    plan = LossPlan({}, {}, ("", ""), matrices, (), 1000, (), "corrected")
    curve = plan_frontier(plan)
    assert [curve[0].nbytes, curve[-1].nbytes] == [16, 256]
    assert curve[-1].cost == 0.0
    costs = [point.cost for point in curve]
    assert costs == sorted(costs, reverse=True)
