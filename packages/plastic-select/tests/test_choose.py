"""Budgets, one choice, and many choices under one budget."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_select import (
    STRATEGIES,
    RankChoice,
    break_even_rank,
    budget_rank,
    choose_rank,
    choose_rank_from_spectrum,
    choose_ranks,
    effective_rank,
    effective_rank_of_spectrum,
    energy_rank,
    stable_rank,
    stable_rank_of_spectrum,
)
from plastic_select.rules import RULES, Energy, Rule, Stable, Theorem, Threshold

Build = Callable[[Sequence[float], int, int, int], NDArray[np.float64]]
Problem = tuple[list[NDArray[np.float64]], list[tuple[int, int]]]

targets = st.sampled_from([0.0, 0.1, 0.3, 0.6])
strategies = st.sampled_from(STRATEGIES)
A = np.diag([4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1])


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to six spectra with power-law decay, some zero, and their shapes."""
    shapes = draw(st.lists(st.tuples(st.integers(4, 40), st.integers(4, 40)), max_size=6))
    shapes.append((30, 20))
    decays = draw(st.lists(st.floats(0, 3), min_size=len(shapes), max_size=len(shapes)))
    scales = draw(
        st.lists(st.sampled_from([0.0, 1e-6, 1.0, 1e3]), min_size=len(shapes), max_size=len(shapes))
    )
    spectra = [
        scale * np.power(np.arange(1.0, min(shape) + 1), -decay)
        for scale, decay, shape in zip(scales, decays, shapes, strict=True)
    ]
    return spectra, shapes


def parameters(choices: list[RankChoice], shapes: list[tuple[int, int]]) -> int:
    return sum((m + n) * c.rank for c, (m, n) in zip(choices, shapes, strict=True))


def dense(shapes: list[tuple[int, int]]) -> int:
    return sum(m * n for m, n in shapes)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 0.99))
def test_the_budget_rank_is_the_largest_that_fits(m: int, n: int, target: float) -> None:
    rank, budget = budget_rank((m, n), target), (1 - target) * m * n
    rounding = 1e-12 * m * n
    assert 1 <= rank <= min(m, n)
    assert rank == 1 or (m + n) * rank <= budget + rounding
    assert (m + n) * (rank + 1) > budget - rounding


def test_budget_and_break_even_of_round_numbers() -> None:
    assert budget_rank((100, 100), 0.3) == 35
    assert budget_rank((3, 3), 0.9) == 1
    assert break_even_rank((100, 300)) == 75
    assert break_even_rank((1, 1)) == 1


@pytest.mark.parametrize("target", [-0.1, 1.0, 1.5, math.nan])
def test_a_target_out_of_range_is_refused(target: float) -> None:
    message = r"`target_compression` must be at least 0 and below 1 \(the fraction .* got"
    with pytest.raises(ValueError, match=message):
        budget_rank((3, 3), target)
    with pytest.raises(ValueError, match=message):
        choose_ranks([np.ones(3)], [(3, 3)], target, "stable")


@pytest.mark.parametrize("strategy", ["best", "Stable", ""])
def test_an_unknown_strategy_is_refused_with_the_known_ones(strategy: str) -> None:
    with pytest.raises(ValueError, match=r"one of 'activation', .*'threshold', got "):
        choose_rank(A, 0.3, strategy)
    with pytest.raises(ValueError, match=r"one of 'activation', .*'threshold', got "):
        choose_ranks([np.ones(3)], [(3, 3)], 0.3, strategy)


def test_stable_is_the_stable_rank_rounded_up() -> None:
    stable = (16 + 4 + 1 + 1 + 0.25 + 0.25 + 0.01 + 0.01) / 16
    assert choose_rank(A, 0.0).rank == math.ceil(stable) == 2
    assert choose_rank(A, 0.0, Stable(2.0)).rank == math.ceil(2 * stable) == 3
    assert choose_rank(A, 0.0, Stable(1e300)).rank == 4  # the budget


def test_energy_is_the_least_rank_that_retains_it_within_the_budget() -> None:
    choice = choose_rank(A, 0.0, Energy(0.9))
    assert choice.rank == energy_rank(np.diag(A), 0.9) == 3
    assert choose_rank(A, 0.6, Energy(0.9)).rank == budget_rank((8, 8), 0.6) == 1
    assert choose_rank(A, 0.0, "energy").rank == 4


def test_the_choice_reports_what_it_keeps_and_loses() -> None:
    choice = choose_rank([[3.0, 0.0], [0.0, 1.0]], 0.0)
    assert (choice.rank, choice.strategy) == (1, "stable")
    assert choice.retained_energy == pytest.approx(0.9, rel=1e-14)
    assert choice.relative_error == pytest.approx(math.sqrt(0.1), rel=1e-14)
    assert choice.why == "1 x stable rank 1.111, rounded up; budget rank 1"


def test_a_tiny_error_is_not_rounded_away() -> None:
    choice = choose_rank(np.diag([1.0, 1e-12]), 0.0)
    assert choice.retained_energy == 1.0
    assert choice.relative_error == pytest.approx(1e-12, rel=1e-9)


def test_activation_reports_the_error_of_the_output(matrix_from_spectrum: Build) -> None:
    W = matrix_from_spectrum([5.0, 4.0, 3.0, 2.0, 1.0], 6, 5, 0)
    x = np.random.default_rng(1).standard_normal((50, 5)) * [1, 10, 0.1, 1, 3]
    choice = choose_rank(W, 0.2, "activation", gram=x.T @ x / 50)
    s = np.linalg.svd(x @ W.T, compute_uv=False)
    lost = np.linalg.norm(s[choice.rank :]) / np.linalg.norm(s)
    assert choice.rank == budget_rank((6, 5), 0.2) == 2
    assert choice.relative_error == pytest.approx(lost, rel=1e-10)


def test_arguments_that_a_strategy_lacks_or_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs `gram`.* Got strategy 'activation' without"):
        choose_rank(A, 0.3, "activation")
    with pytest.raises(ValueError, match=r"needs `gram`.* Got strategy 'stable' with"):
        choose_rank(A, 0.3, gram=np.eye(8))


@pytest.mark.parametrize("number", [0, -1.0, math.inf, math.nan])
def test_numbers_out_of_range_are_refused_by_their_rule(number: float) -> None:
    with pytest.raises(ValueError, match=f"`retained_energy` must be above 0 .* got {number}"):
        Energy(number)
    with pytest.raises(ValueError, match=f"`multiple` must be positive and finite, got {number}"):
        Stable(number)


def test_a_rule_may_be_given_by_name_or_as_an_object() -> None:
    assert tuple(rule.name for rule in RULES.values()) == tuple(RULES) == STRATEGIES
    for name, rule in RULES.items():
        gram = np.eye(8) if rule.needs_gram else None
        assert choose_rank(A, 0.3, rule(), gram=gram) == choose_rank(A, 0.3, name, gram=gram)
        problem = [np.diag(A)] * 2, [(8, 8)] * 2, 0.3
        assert choose_ranks(*problem, rule()) == choose_ranks(*problem, name)


@pytest.mark.parametrize(
    ("free", "enough", "scarce"),
    [(Stable(), Stable(50.0), Stable(0.2)), (Energy(), Energy(1.0), Energy(0.3))],
)
def test_a_number_of_the_rule_is_the_largest_that_matrices_have_in_common(
    free: Rule, enough: Rule, scarce: Rule
) -> None:
    spectra, shapes = [np.ones(40), 1.0 / np.arange(1, 41)], [(40, 40)] * 2
    by_budget = choose_ranks(spectra, shapes, 0.5, free)
    assert choose_ranks(spectra, shapes, 0.5, enough) == by_budget
    by_number = [c.rank for c in choose_ranks(spectra, shapes, 0.5, scarce)]
    alone = [choose_rank_from_spectrum(s, (40, 40), 0.0, scarce).rank for s in spectra]
    assert by_number == alone < [c.rank for c in by_budget]


@pytest.mark.parametrize("rule", [Stable(0.7), Energy(0.9), Theorem(), Threshold(noise=0.01)])
def test_a_rule_of_your_own_numbers_reads_part_of_a_spectrum(rule: Rule) -> None:
    s = np.array([1.0] * 3 + [0.1] * 3)
    choice = rule.choose(s, (40, 60), budget=6)
    assert 1 <= choice.rank <= 6
    assert choice.strategy == rule.name


@given(problems(), targets, strategies)
def test_many_matrices_stay_within_one_budget_and_their_own_limits(
    problem: Problem, target: float, strategy: str
) -> None:
    spectra, shapes = problem
    choices = choose_ranks(spectra, shapes, target, strategy)
    assert parameters(choices, shapes) <= (1 - target) * dense(shapes)
    for choice, shape in zip(choices, shapes, strict=True):
        assert 1 <= choice.rank <= break_even_rank(shape) <= min(shape)
        assert choice.strategy == strategy


@given(problems(), targets, st.sampled_from(["stable", "energy"]))
def test_a_larger_common_number_would_exceed_the_budget(
    problem: Problem, target: float, strategy: str
) -> None:
    spectra, shapes = problem
    choices = choose_ranks(spectra, shapes, target, strategy)
    top = [break_even_rank(shape) for shape in shapes]
    stable = [np.square(s / s[0]).sum() if s[0] else 0.0 for s in spectra]
    # The next rank of each matrix begins at its own value of the common number.
    if strategy == "stable":
        begins = [c.rank / x if x else math.inf for c, x in zip(choices, stable, strict=True)]
    else:
        begins = [c.retained_energy if s[0] else 1.0 for c, s in zip(choices, spectra, strict=True)]
    free = [i for i, c in enumerate(choices) if c.rank < top[i] and begins[i] < math.inf]
    free = [i for i in free if strategy == "stable" or begins[i] < 1 - 1e-12]
    if free:
        first = min(begins[i] for i in free)
        more = sum(sum(shapes[i]) for i in free if begins[i] <= first * (1 + 1e-9))
        assert parameters(choices, shapes) + more > (1 - target) * dense(shapes)


@given(problems(), targets)
def test_activation_keeps_one_fraction_of_the_output_energy(
    problem: Problem, target: float
) -> None:
    by_energy, by_output = (choose_ranks(*problem, target, s) for s in ("energy", "activation"))
    assert [c.rank for c in by_output] == [c.rank for c in by_energy]


def test_activation_moves_rank_to_where_the_energy_is_spread() -> None:
    steep, flat = 1.0 / np.arange(1, 41) ** 3, np.ones(40)
    ranks = [c.rank for c in choose_ranks([steep, flat], [(40, 40)] * 2, 0.5, "activation")]
    assert ranks == [1, 19]  # 47.5 % of both


def test_stable_divides_in_proportion_to_the_stable_rank() -> None:
    eight, two = [1.0] * 8 + [0.0] * 92, [1.0] * 2 + [0.0] * 98
    ranks = [c.rank for c in choose_ranks([eight, two], [(100, 100)] * 2, 0.5, "stable")]
    assert ranks == [40, 10]


def test_energy_gives_equal_matrices_equal_ranks() -> None:
    s = 1.0 / np.arange(1, 51)
    ranks = [c.rank for c in choose_ranks([s, 7 * s, s], [(50, 50)] * 3, 0.2, "energy")]
    assert ranks == [20, 20, 20]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_matrix_goes_below_the_floor(strategy: str) -> None:
    spectra = [1.0 / np.arange(1, 41) ** 4, np.ones(40), np.zeros(40)]
    choices = choose_ranks(spectra, [(40, 40)] * 3, 0.5, strategy, floor=6)
    assert min(c.rank for c in choices) >= 6
    assert parameters(choices, [(40, 40)] * 3) <= 0.5 * 3 * 1600


def test_theorem_and_threshold_decide_for_each_matrix_alone() -> None:
    clear, smooth = [1.0] * 3 + [0.01] * 37, list(1.0 / np.arange(1, 41))
    for strategy in ("theorem", "threshold"):
        shared = choose_ranks([clear, smooth], [(40, 40)] * 2, 0.3, strategy)
        alone = [choose_rank_from_spectrum(s, (40, 40), 0.3, strategy) for s in (clear, smooth)]
        assert shared == alone
        assert shared[0].rank == 3


def test_a_floor_that_alone_exceeds_the_budget_is_refused_with_both_numbers() -> None:
    message = r"`floor` = 3 in each of 2 matrices needs 120 parameters, .* leaves 80\. Lower"
    with pytest.raises(ValueError, match=message):
        choose_ranks([np.ones(10)] * 2, [(10, 10)] * 2, 0.6, "stable", floor=3)
    with pytest.raises(ValueError, match="`floor` must be at least 1, got 0"):
        choose_ranks([np.ones(10)], [(10, 10)], 0.6, "stable", floor=0)


def test_spectra_that_do_not_fit_their_shapes_are_refused_with_their_number() -> None:
    with pytest.raises(ValueError, match=r"same number of entries, at least 1, got 2 and 1"):
        choose_ranks([np.ones(3)] * 2, [(3, 3)], 0.3, "stable")
    with pytest.raises(ValueError, match="at least 1, got 0 and 0"):
        choose_ranks([], [], 0.3, "stable")
    with pytest.raises(ValueError, match=r"min\(m, n\) = 4 values") as caught:
        choose_ranks([np.ones(3)] * 2, [(3, 3), (4, 5)], 0.3, "stable")
    assert caught.value.__notes__ == ["while reading matrix 1 of 2"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_arguments_give_the_same_choices(strategy: str) -> None:
    spectra = [np.sort(np.random.default_rng(i).random(30))[::-1] for i in range(5)]
    shapes = [(30, 30 + 7 * i) for i in range(5)]
    first = choose_ranks(spectra, shapes, 0.4, strategy)
    assert first == choose_ranks(spectra, shapes, 0.4, strategy)


def test_a_ceiling_holds_under_every_strategy() -> None:
    spectra = [np.arange(1.0, 17.0) ** -0.3, np.ones(16)]
    shapes = [(16, 24), (16, 16)]
    for strategy in STRATEGIES:
        free = choose_ranks(spectra, shapes, 0.1, strategy)
        held = choose_ranks(spectra, shapes, 0.1, strategy, ceilings=[3, 16])
        assert held[0].rank == min(3, free[0].rank)
        assert held[1].rank >= free[1].rank


@pytest.mark.parametrize("k", [1, 5, 12])
def test_stable_keeps_the_rank_of_a_projector_with_a_little_noise(k: int) -> None:
    s = np.concatenate([np.ones(k), np.full(20 - k, 1e-3)])
    assert choose_rank_from_spectrum(s, (20, 40), 0.0, "stable").rank == min(k, 13)


def test_ranks_of_a_spectrum_are_those_of_its_matrix() -> None:
    s = np.array([3.0, 2.0, 1.0, 0.0])
    assert stable_rank_of_spectrum(s) == pytest.approx(stable_rank(np.diag(s)))
    assert effective_rank_of_spectrum(s) == pytest.approx(effective_rank(np.diag(s)))
    assert effective_rank_of_spectrum([2.0, 2.0]) == pytest.approx(2.0)
