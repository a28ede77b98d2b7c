"""Allocations against every combination, against the dual, and at full size."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_select import Allocation, Option, allocate, break_even_rank, rank_options

Options = Mapping[str, Sequence[Option]]
Problem = tuple[dict[str, list[Option]], int]

EPS = float(np.finfo(np.float64).eps)
# Dyadic costs bring ties and collinear options, the others rounding.
costs = st.integers(0, 40).map(lambda c: c / 8) | st.floats(0, 100)
offers = st.lists(st.builds(Option, st.integers(0, 60), costs, st.none()), min_size=1, max_size=5)


def sums(options: Options) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The bytes and the cost of every combination."""
    nbytes = [np.array([o.nbytes for o in offered]) for offered in options.values()]
    cost = [np.array([o.cost for o in offered]) for offered in options.values()]
    return reduce(np.add.outer, nbytes).ravel(), reduce(np.add.outer, cost).ravel()


def optimum(options: Options, budget: int) -> float:
    nbytes, cost = sums(options)
    return float(cost[nbytes <= budget].min())


def dual(options: Options, budget: int) -> float:
    """The linear relaxation by its dual, which is greatest at the slope between two options."""
    slopes = {0.0}
    for offered in options.values():
        for a, b in itertools.combinations(offered, 2):
            if a.nbytes != b.nbytes:
                slopes.add(max(0.0, (a.cost - b.cost) / (b.nbytes - a.nbytes)))
    return max(
        sum(min(o.cost + x * o.nbytes for o in offered) for offered in options.values())
        - x * budget
        for x in slopes
    )


def tolerance(options: Options) -> float:
    """What adding up costs in another order, weighed by bytes, may change."""
    sizes = [o.nbytes for offered in options.values() for o in offered]
    return 10 * EPS * (1 + max(sizes)) * sum(max(o.cost for o in v) for v in options.values())


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to five matrices of up to five options, and a budget that can be met."""
    offered = draw(st.lists(offers, min_size=1, max_size=5))
    options = {f"m{i}": each for i, each in enumerate(offered)}
    nbytes, _ = sums(options)
    return options, draw(st.integers(int(nbytes.min()), int(nbytes.max()) + 3))


def of_spectra(matrices: int, seed: int) -> dict[str, list[Option]]:
    """Up to 63 ranks and the dense matrix, for power laws at the shapes of a Llama."""
    rng = np.random.default_rng(seed)
    shapes = [(4096, 4096), (1024, 4096), (11008, 4096), (4096, 11008)]
    options = {}
    for i in range(matrices):
        m, n = shapes[i % 4]
        s = math.exp(rng.normal()) * np.arange(1.0, min(m, n) + 1) ** -rng.uniform(0.3, 1.2)
        step = break_even_rank((m, n)) // 62
        options[f"m{i}"] = rank_options(
            s,
            bytes_per_component=2 * (m + n),
            ceiling=62 * step,
            multiple_of=step,
            dense=2 * m * n,
        )
    return options


def between(options: Options, fraction: float) -> int:
    """A budget between the least and the greatest use of bytes."""
    least = sum(min(o.nbytes for o in offered) for offered in options.values())
    most = sum(max(o.nbytes for o in offered) for offered in options.values())
    return int(least + fraction * (most - least))


@given(problems())
def test_no_combination_within_the_budget_costs_less(problem: Problem) -> None:
    options, budget = problem
    (allocation,) = allocate(options, [budget])
    assert allocation.optimal
    assert allocation.cost <= optimum(options, budget) + tolerance(options)


@given(problems())
def test_the_sums_are_those_of_the_options_chosen_and_within_the_budget(problem: Problem) -> None:
    options, budget = problem
    (allocation,) = allocate(options, [budget])
    assert list(allocation.chosen) == list(options)
    chosen = [options[name][i] for name, i in allocation.chosen.items()]
    assert allocation.nbytes == sum(o.nbytes for o in chosen) <= allocation.budget == budget
    assert allocation.cost == math.fsum(o.cost for o in chosen)


@given(problems())
def test_the_lower_bound_is_between_the_dual_and_the_optimum(problem: Problem) -> None:
    options, budget = problem
    (allocation,) = allocate(options, [budget])
    assert allocation.lower_bound >= dual(options, budget) - tolerance(options)
    assert allocation.lower_bound <= optimum(options, budget) + tolerance(options)
    assert 0 <= allocation.lower_bound <= allocation.cost
    assert allocation.gap >= 0


@given(problems())
def test_the_multiplier_supports_the_lower_bound(problem: Problem) -> None:
    options, budget = problem
    # An option of one byte and no use lets every budget be filled exactly.
    options = options | {"filler": [Option(0, 0.0), Option(1, 0.0)]}
    options["odd"] = [Option(0, 300.0), Option(1, 100.0), Option(2, 0.0)]
    (a,) = allocate(options, [budget])
    x = a.multiplier
    supported = sum(min(o.cost + x * o.nbytes for o in v) for v in options.values()) - x * budget
    assert x >= 0
    assert supported == pytest.approx(a.lower_bound, rel=0, abs=100 * tolerance(options))


@given(problems(), st.integers(0, 200))
def test_a_larger_budget_costs_no_more(problem: Problem, more: int) -> None:
    options, budget = problem
    tight, roomy = allocate(options, [budget, budget + more])
    assert roomy.cost <= tight.cost + tolerance(options)
    assert roomy.lower_bound <= tight.lower_bound + tolerance(options)
    assert roomy.multiplier <= tight.multiplier


@given(problems(), st.lists(st.integers(0, 100), max_size=4))
def test_several_budgets_give_what_each_alone_gives(problem: Problem, more: list[int]) -> None:
    options, budget = problem
    budgets = [budget + each for each in more]
    assert allocate(options, budgets) == [allocate(options, [each])[0] for each in budgets]


@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_matrices_and_options_does_not_matter(problem: Problem, random: Any) -> None:
    options, budget = problem
    (before,) = allocate(options, [budget])
    names = random.sample(list(options), len(options))
    (after,) = allocate({name: options[name] for name in names}, [budget])
    assert before == after
    mixed = {name: random.sample(each, len(each)) for name, each in options.items()}
    (after,) = allocate(mixed, [budget])
    assert (after.nbytes, after.cost) == (before.nbytes, before.cost)
    for name, i in after.chosen.items():
        assert mixed[name][i][:2] == options[name][before.chosen[name]][:2]


@given(problems(), st.data())
def test_a_fixed_choice_is_kept_and_the_rest_is_the_best_beside_it(
    problem: Problem, data: st.DataObject
) -> None:
    options, budget = problem
    names = data.draw(st.sets(st.sampled_from(sorted(options))))
    fixed = {name: data.draw(st.integers(0, len(options[name]) - 1)) for name in names}
    budget += 60 * len(fixed)
    (allocation,) = allocate(options, [budget], fixed=fixed)
    assert {name: allocation.chosen[name] for name in fixed} == fixed
    left = {n: [each[fixed[n]]] if n in fixed else each for n, each in options.items()}
    assert allocation.cost <= optimum(left, budget) + tolerance(options)


@given(problems(), st.data())
def test_options_that_another_beats_change_nothing(problem: Problem, data: st.DataObject) -> None:
    options, budget = problem
    worse = {
        name: [*each, *(Option(o.nbytes + data.draw(st.integers(0, 9)), o.cost + 1) for o in each)]
        for name, each in options.items()
    }
    (before,), (after,) = allocate(options, [budget]), allocate(worse, [budget])
    assert after.chosen == before.chosen


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 8), (2, 2), (1000, 8)]), st.booleans())
def test_a_proof_holds_however_narrow_the_sweep(
    seed: int, widths: tuple[int, int], hard: bool
) -> None:
    rng = np.random.default_rng(seed)
    nbytes = rng.integers(0, 100, (12, 6))
    cost = 100 - nbytes + rng.integers(-2, 3, nbytes.shape) if hard else rng.random(nbytes.shape)
    options = {
        f"m{i}": [Option(int(b), max(0.0, float(c))) for b, c in zip(*each, strict=True)]
        for i, each in enumerate(zip(nbytes, cost, strict=True))
    }
    budgets = [between(options, fraction) for fraction in (0.1, 0.3, 0.5)]
    best = least_costs(options, budgets[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plastic_select.allocation.search.FIRST_WIDTH", widths[0])
        patch.setattr("plastic_select.allocation.search.WIDENING", widths[1])
        for found in allocate(options, budgets):
            assert found.optimal
            assert found.cost <= best[found.budget] + tolerance(options)


def least_costs(options: Options, budget: int) -> NDArray[np.float64]:
    """The least cost within 0, 1, ..., ``budget`` bytes, by dynamic programming over bytes."""
    best = np.zeros(budget + 1)
    for offered in options.values():
        sizes = [min(o.nbytes, budget + 1) for o in offered]
        shifted = [np.append(np.full(n, np.inf), best)[: budget + 1] for n in sizes]
        best = np.min([x + o.cost for x, o in zip(shifted, offered, strict=True)], axis=0)
    return best


def test_without_time_to_search_the_result_is_within_the_budget_and_not_called_optimal() -> None:
    options = of_spectra(40, seed=1)
    budget = between(options, 0.5)
    assert allocate(options, [budget])[0].optimal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "plastic_select.allocation.search.WIDENING", 10**9
        )  # one sweep to the end would do
        patch.setattr("plastic_select.allocation.search.MOST_WORK", 1)
        (allocation,) = allocate(options, [budget])
    assert allocation.nbytes <= budget
    assert not allocation.optimal
    assert 0 < allocation.gap < 0.1


def test_the_worked_example_of_the_search() -> None:
    options = {"a": [Option(0, 5.0), Option(6, 0.0)], "b": [Option(0, 4.0), Option(5, 0.0)]}
    (allocation,) = allocate(options, [5])
    assert (allocation.chosen, allocation.cost) == ({"a": 0, "b": 1}, 5.0)
    assert allocation.lower_bound == pytest.approx(9 - 25 / 6)
    assert allocation.optimal


def test_equal_matrices_are_no_harder_than_one() -> None:
    offered = [Option(0, 5.3), Option(40, 2.1), Option(70, 1.9), Option(100, 0.7), Option(190, 0)]
    options = {f"m{i}": offered for i in range(500)}
    for allocation in allocate(options, [between(options, f) for f in (0.1, 0.33, 0.77)]):
        assert allocation.optimal


def test_two_thousand_matrices_come_within_a_thousandth_of_the_lower_bound() -> None:
    options = of_spectra(2000, seed=0)
    assert {len(offered) for offered in options.values()} == {64}
    budgets = [between(options, fraction) for fraction in (0.05, 0.3, 0.6, 0.95)]
    for allocation in allocate(options, budgets):
        assert allocation.nbytes <= allocation.budget
        assert 0 < allocation.gap <= 1e-3
        assert allocation.optimal


def test_a_sum_of_bytes_that_hits_the_budget_is_found() -> None:
    options = subset_sums(40)
    (allocation,) = allocate(options, [between(options, 0.5)])
    assert allocation.nbytes == allocation.budget
    assert allocation.optimal
    assert allocation.gap == 0


def subset_sums(matrices: int) -> dict[str, list[Option]]:
    """Every byte is worth the same, so that only the sum matters."""
    rng = np.random.default_rng(0)
    return {
        f"m{i}": [Option(int(b), float(10**6 - b)) for b in rng.integers(1, 10**6, 10)]
        for i in range(matrices)
    }


def test_two_matrices_by_hand() -> None:
    offered = [Option(0, 5.0), Option(60, 1.0), Option(100, 0.0)]
    everything, most, tight, nothing = allocate({"a": offered, "b": offered}, [250, 130, 110, 0])
    assert everything == Allocation({"a": 2, "b": 2}, 200, 0.0, 250, 0.0, 0.0, True)
    assert most == Allocation({"a": 1, "b": 1}, 120, 2.0, 130, 2.0, 1 / 40, True)
    # Two of the middle size do not fit: the relaxation takes two thirds of one of them.
    assert (tight.nbytes, tight.cost, tight.multiplier) == (100, 5.0, 4 / 60)
    assert tight.lower_bound == pytest.approx(5 + 5 - 100 * 4 / 60, rel=1e-15)
    assert tight.gap == pytest.approx(0.5, rel=1e-14)
    assert (nothing.chosen, nothing.cost, nothing.nbytes) == ({"a": 0, "b": 0}, 10.0, 0)


def test_of_equal_matrices_the_same_one_gets_more_in_any_order() -> None:
    offered = [Option(0, 5.0), Option(10, 0.0)]
    (before,) = allocate({"a": offered, "b": offered}, [10])
    (after,) = allocate({"b": offered, "a": offered}, [10])
    assert before == after
    assert before.nbytes == 10


def test_a_budget_beyond_any_need_buys_the_option_of_least_cost() -> None:
    options = {"a": [Option(0, 5.0), Option(10, 0.0), Option(20, 0.0)]}
    assert allocate(options, [10**30]) == [Allocation({"a": 1}, 10, 0.0, 10**30, 0.0, 0.0, True)]


def test_a_gap_above_a_bound_of_zero_is_infinite() -> None:
    assert Allocation({}, 0, 1.0, 0, 0.0, 0.0, False).gap == math.inf
    assert Allocation({}, 0, 0.0, 0, 0.0, 0.0, True).gap == 0.0


def test_matrices_without_a_choice_cost_what_they_cost() -> None:
    options = {"a": [Option(7, 2.0)], "b": [Option(5, 1.0), Option(5, 0.5), Option(6, 3.0)]}
    (allocation,) = allocate(options, [12])
    assert allocation == Allocation({"a": 0, "b": 1}, 12, 2.5, 12, 2.5, 0.0, True)


def test_bytes_beyond_32_bits_and_numpy_numbers_are_exact() -> None:
    big = 3 * 2**40 + 1
    options = {
        "a": [Option(0, np.float32(1.0)), Option(big, 0.0)],  # type: ignore[arg-type]
        "b": [Option(np.int64(big), 0.25), Option(0, 2.0)],  # type: ignore[arg-type]
    }
    exact, short = allocate(options, np.array([2 * big, 2 * big - 1]))  # type: ignore[arg-type]
    assert (exact.nbytes, exact.cost) == (2 * big, 0.25)
    assert (short.nbytes, short.cost) == (big, 1.25)
    assert type(exact.nbytes) is type(exact.budget) is type(exact.chosen["a"]) is int


def test_no_budgets_give_no_allocations() -> None:
    assert allocate({"a": [Option(1, 1.0)]}, []) == []


def test_a_budget_below_the_least_possible_names_that() -> None:
    options = {"a": [Option(70, 0.0), Option(50, 1.0)], "b": [Option(40, 0.0)]}
    message = r"`budgets` must be at least 90 bytes, .* 2 matrices .*, got 89\. Raise it"
    with pytest.raises(ValueError, match=message):
        allocate(options, [1000, 89])
    with pytest.raises(ValueError, match=r"at least 110 bytes.*, got 90\."):
        allocate(options, [90], fixed={"a": 0})


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        (Option(-4, 0.0), ValueError, r"`options\['b'\]\[1\]\.nbytes` must be at least 0 .*got -4"),
        (Option(2**53, 0.0), ValueError, r"`options\['b'\]\[1\]\.nbytes` must .* below 2\*\*53"),
        (Option(2**80, 0.0), ValueError, r"`options\['b'\]\[1\]\.nbytes` must .* below 2\*\*53"),
        (Option(2.0, 0.0), TypeError, r"`options\['b'\]\[1\]\.nbytes` must be an integer, got 2.0"),  # type: ignore[arg-type]
        (Option(1, -0.5), ValueError, r"`options\['b'\]\[1\]\.cost` must be at least 0 .*got -0.5"),
        (Option(1, math.nan), ValueError, r"`options\['b'\]\[1\]\.cost` must be .*finite, got nan"),
        (Option(1, math.inf), ValueError, r"`options\['b'\]\[1\]\.cost` must be .*finite, got inf"),
        (Option(1, None), TypeError, r"`options\['b'\]\[1\]\.cost` must be a number, got None"),  # type: ignore[arg-type]
    ],
)
def test_an_impossible_option_is_named(
    option: Option, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        allocate({"a": [Option(1, 1.0)], "b": [Option(1, 1.0), option]}, [10])


def test_arguments_that_cannot_be_met_are_refused() -> None:
    options = {"a": [Option(1, 1.0), Option(2, 0.0)]}
    with pytest.raises(ValueError, match="`options` must name at least one matrix, got none"):
        allocate({}, [5])
    with pytest.raises(ValueError, match=r"`options\['b'\]` must hold at least one option"):
        allocate(options | {"b": []}, [5])
    with pytest.raises(ValueError, match="`fixed` must name matrices of `options`, got 'c'"):
        allocate(options, [5], fixed={"c": 0})
    for choice in (2, -1):
        with pytest.raises(
            ValueError, match=rf"`fixed\['a'\]` must be from 0 to 1 .* got {choice}"
        ):
            allocate(options, [5], fixed={"a": choice})
    with pytest.raises(TypeError, match=r"`budgets` must be a sequence .* got 5\. For a single"):
        allocate(options, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`budgets` must hold integers .* got 5\.5\. Round it"):
        allocate(options, [5, 5.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"less than 2\*\*53 bytes in all"):
        allocate({name: [Option(2**52, 0.0)] for name in "abc"}, [2**60])
    with pytest.raises(ValueError, match=r"finite, got a sum of up to 1e\+308\. Scale them down"):
        allocate({"a": [Option(10**6, 1e308)]}, [10**6])


@given(st.integers(2, 40), st.integers(2, 40), st.floats(0, 2), st.floats(0, 1))
def test_no_rank_at_or_above_the_break_even_is_ever_allocated(
    m: int, n: int, decay: float, fraction: float
) -> None:
    s = np.arange(1.0, min(m, n) + 1) ** -decay
    options = {"w": rank_options(s, bytes_per_component=m + n, dense=m * n)}
    (allocation,) = allocate(options, [between(options, fraction)])
    label = options["w"][allocation.chosen["w"]].label
    assert label == "dense" if allocation.budget >= m * n else label * (m + n) < m * n
    assert label == "dense" or label <= break_even_rank((m, n))


def test_the_budget_goes_to_where_the_spectrum_is_flat() -> None:
    steep, flat = 1.0 / np.arange(1, 41) ** 3, np.ones(40)
    options = {
        "steep": rank_options(steep, bytes_per_component=80, floor=1, ceiling=20),
        "flat": rank_options(flat, bytes_per_component=80, floor=1, ceiling=20),
    }
    (allocation,) = allocate(options, [80 * 20])
    assert allocation.chosen == {"steep": 0, "flat": 18}  # ranks 1 and 19
    assert allocation.optimal
