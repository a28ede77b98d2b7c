"""Every rule on random, near-idempotent and rectangular matrices."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_select import (
    RankChoice,
    budget_rank,
    choose_rank,
    choose_rank_from_spectrum,
    energy_rank,
    singular_values,
    weighted_singular_values,
)
from plastic_select.rules import RULES, Energy, Rule, Stable, Theorem, Threshold

Build = Callable[[Sequence[float], int, int, int], NDArray[np.float64]]

every_rule = pytest.mark.parametrize("rule", [*(rule() for rule in RULES.values()), Energy(0.9)])
A = np.diag([4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1])
sides = st.integers(1, 24)
targets = st.sampled_from([0.0, 0.2, 0.5, 0.9])
seeds = st.integers(0, 99)


def gram_for(rule: Rule, inputs: int, seed: int) -> NDArray[np.float64] | None:
    x = np.random.default_rng(seed).standard_normal((8, inputs))
    return x.T @ x / 8 if rule.needs_gram else None


def is_consistent(choice: RankChoice, A: NDArray[np.float64], target: float) -> bool:
    return (
        1 <= choice.rank <= budget_rank((len(A), len(A[0])), target) <= min(A.shape)
        and 0 <= choice.retained_energy <= 1
        and math.isclose(choice.relative_error**2, 1 - choice.retained_energy, abs_tol=1e-14)
        and bool(choice.why)
    )


@every_rule
@given(m=sides, n=sides, target=targets, seed=seeds)
def test_random_matrices_of_any_shape_get_a_rank_within_the_budget(
    rule: Rule, m: int, n: int, target: float, seed: int
) -> None:
    A = np.random.default_rng(seed).standard_normal((m, n))
    choice = choose_rank(A, target, rule, gram=gram_for(rule, n, seed))
    assert choice.strategy == rule.name
    assert is_consistent(choice, A, target)


@every_rule
@pytest.mark.parametrize("shape", [(48, 12), (12, 48), (1, 20), (20, 1), (1, 1), (31, 32)])
def test_rectangular_matrices_and_their_transposes_get_the_same_rank(
    rule: Rule, shape: tuple[int, int]
) -> None:
    A = np.random.default_rng(3).standard_normal(shape)
    choice, turned = (
        choose_rank(M, 0.3, rule, gram=np.eye(M.shape[1]) if rule.needs_gram else None)
        for M in (A, A.T)
    )
    assert choice.rank == turned.rank
    assert is_consistent(choice, A, 0.3)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("rule", [Energy(0.999), Stable(), Theorem(), Threshold()])
def test_a_near_idempotent_matrix_gets_its_rank(
    matrix_from_spectrum: Build, rule: Rule, k: int
) -> None:
    Q = matrix_from_spectrum([1.0] * k, 40, 40, k)
    noise = np.random.default_rng(k).standard_normal((40, 40))
    A = Q @ Q.T + 1e-4 * noise
    rank = choose_rank(A, 0.2, rule).rank
    # Noise lifts the stable rank a hair above k, and it is rounded up.
    assert rank in ((k, k + 1) if rule == Stable() else (k,))


@every_rule
def test_a_zero_matrix_gets_a_rank_and_no_error(rule: Rule) -> None:
    choice = choose_rank(np.zeros((6, 4)), 0.2, rule, gram=gram_for(rule, 4, 0))
    assert (choice.retained_energy, choice.relative_error) == (1.0, 0.0)
    assert 1 <= choice.rank <= budget_rank((6, 4), 0.2)


@every_rule
@given(m=sides, n=sides, seed=seeds)
def test_the_reported_error_is_that_of_the_truncated_svd(
    rule: Rule, m: int, n: int, seed: int
) -> None:
    A = np.random.default_rng(seed).standard_normal((m, n))
    gram = gram_for(rule, n, seed)
    w, V = np.linalg.eigh(np.eye(n) if gram is None else gram)
    root = V @ np.diag(np.sqrt(np.maximum(w, 0))) @ V.T
    choice = choose_rank(A, 0.2, rule, gram=gram)
    U, s, Vh = np.linalg.svd(A @ root, full_matrices=False)
    r = choice.rank
    difference = A @ root - (U[:, :r] * s[:r]) @ Vh[:r]
    error = np.linalg.norm(difference) / np.linalg.norm(A @ root)
    assert choice.relative_error == pytest.approx(error, abs=1e-13 if gram is None else 1e-7)


@every_rule
def test_a_spectrum_gives_the_choice_that_the_matrix_gives(rule: Rule) -> None:
    A = np.random.default_rng(5).standard_normal((20, 30))
    gram = gram_for(rule, 30, 5)
    choice = choose_rank(A, 0.3, rule, gram=gram)
    s = singular_values(A) if gram is None else weighted_singular_values(A, gram)
    assert choose_rank_from_spectrum(s, (20, 30), 0.3, rule) == choice


@every_rule
def test_a_smaller_budget_never_gives_a_larger_rank(rule: Rule) -> None:
    A = np.random.default_rng(6).standard_normal((40, 25)) * np.linspace(1, 0.1, 25)
    gram = gram_for(rule, 25, 6)
    ranks = [choose_rank(A, t / 10, rule, gram=gram).rank for t in range(10)]
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize("number", [0, -1.0, math.inf, math.nan])
def test_numbers_out_of_range_are_refused_by_their_rule(number: float) -> None:
    with pytest.raises(ValueError, match=f"`retained_energy` must be above 0 .* got {number}"):
        Energy(number)
    with pytest.raises(ValueError, match=f"`multiple` must be positive and finite, got {number}"):
        Stable(number)


@pytest.mark.parametrize("rule", [Stable(0.7), Energy(0.9), Theorem(), Threshold(noise=0.01)])
def test_a_rule_of_your_own_numbers_reads_part_of_a_spectrum(rule: Rule) -> None:
    s = np.array([1.0] * 3 + [0.1] * 3)
    choice = rule.choose(s, (40, 60), budget=6)
    assert 1 <= choice.rank <= 6
    assert choice.strategy == rule.name


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


@pytest.mark.parametrize("k", [1, 5, 12])
def test_stable_keeps_the_rank_of_a_projector_with_a_little_noise(k: int) -> None:
    s = np.concatenate([np.ones(k), np.full(20 - k, 1e-3)])
    assert choose_rank_from_spectrum(s, (20, 40), 0.0, "stable").rank == min(k, 13)
