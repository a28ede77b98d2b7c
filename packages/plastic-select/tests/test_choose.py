"""One matrix, one rank."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plastic_select import (
    STRATEGIES,
    budget_rank,
    choose_rank,
    choose_ranks,
)
from plastic_select.rules import RULES, Energy, Stable, Threshold

Build = Callable[[Sequence[float], int, int, int], NDArray[np.float64]]
A = np.diag([4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1])


@pytest.mark.parametrize("target", [-0.1, 1.0, 1.5, math.nan])
def test_a_target_out_of_range_is_refused(target: float) -> None:
    message = r"`target_compression` must be at least 0 and below 1 \(the fraction .* got"
    with pytest.raises(ValueError, match=message):
        budget_rank((3, 3), target)
    with pytest.raises(ValueError, match=message):
        choose_ranks([np.ones(3)], [(3, 3)], target, "stable")


@pytest.mark.parametrize("value", ["0.5", b"1", [0.5], np.array([0.5])])
def test_a_number_that_is_none_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(TypeError, match="`target_compression` must be a number, got"):
        choose_rank(np.eye(4), value)
    with pytest.raises(TypeError, match="`retained_energy` must be a number, got"):
        Energy(value)
    with pytest.raises(TypeError, match="`multiple` must be a number, got"):
        Stable(value)
    with pytest.raises(TypeError, match="`noise` must be a number, got"):
        Threshold(value)
    with pytest.raises(TypeError, match="`shape` must be a number, got"):
        budget_rank((4, value), 0.5)


def test_records_are_no_numbers() -> None:
    with pytest.raises(TypeError, match="must hold real numbers that NumPy can read: dtype"):
        choose_rank(np.zeros((3, 3), [("a", "f4")]), 0.5)


@pytest.mark.parametrize("strategy", ["best", "Stable", ""])
def test_an_unknown_strategy_is_refused_with_the_known_ones(strategy: str) -> None:
    with pytest.raises(ValueError, match=r"one of 'activation', .*'threshold', got "):
        choose_rank(A, 0.3, strategy)
    with pytest.raises(ValueError, match=r"one of 'activation', .*'threshold', got "):
        choose_ranks([np.ones(3)], [(3, 3)], 0.3, strategy)


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


def test_a_rule_may_be_given_by_name_or_as_an_object() -> None:
    assert tuple(rule.name for rule in RULES.values()) == tuple(RULES) == STRATEGIES
    for name, rule in RULES.items():
        gram = np.eye(8) if rule.needs_gram else None
        assert choose_rank(A, 0.3, rule(), gram=gram) == choose_rank(A, 0.3, name, gram=gram)
        problem = [np.diag(A)] * 2, [(8, 8)] * 2, 0.3
        assert choose_ranks(*problem, rule()) == choose_ranks(*problem, name)
