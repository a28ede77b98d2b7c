"""Many matrices under one budget."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_select import (
    STRATEGIES,
    RankChoice,
    break_even_rank,
    choose_rank_from_spectrum,
    choose_ranks,
)
from plastic_select.rules import Energy, Rule, Stable

Problem = tuple[list[NDArray[np.float64]], list[tuple[int, int]]]
targets = st.sampled_from([0.0, 0.1, 0.3, 0.6])
strategies = st.sampled_from(STRATEGIES)


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
