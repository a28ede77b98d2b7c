"""Student's quantile against its density, closed forms and the tables; intervals by hand."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_export.evaluation.intervals import confidence_interval, mean_and_error, t_quantile


def mass(t: float, freedom: int) -> float:
    """Of Student's density within -t and t: Gauss and Legendre's rule in x = t sin(angle)."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    angles = (nodes + 1) * math.atan(t / math.sqrt(freedom)) / 2
    ratio = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    half = math.atan(t / math.sqrt(freedom)) / 2
    return float(
        2 * half * math.exp(ratio) / math.sqrt(math.pi) * weights @ np.cos(angles) ** (freedom - 1)
    )


@given(freedom=st.integers(1, 2000))
def test_95_percent_of_students_distribution_lie_within_the_quantile(freedom: int) -> None:
    assert mass(t_quantile(freedom), freedom) == pytest.approx(0.95, rel=0, abs=1e-10)


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (23, 2.0687), (120, 1.9799)]
)
def test_the_quantile_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert round(t_quantile(freedom), 4) == t


def test_the_quantile_has_its_closed_forms() -> None:
    eps = 8 * np.finfo(float).eps
    assert t_quantile(1) == pytest.approx(math.tan(0.95 * math.pi / 2), rel=100 * eps)
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=eps)
    normal = NormalDist().inv_cdf(0.975)
    assert t_quantile(10**5) == pytest.approx(normal, rel=2e-5)  # t = z (1 + (z^2 + 1) / 4n)


def test_an_interval_by_hand() -> None:
    mean, error = mean_and_error(np.array([1.0, 2.0, 3.0]))
    assert (mean, error) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert error is not None
    low, high = confidence_interval(mean, error, 3)
    assert high - 2 == pytest.approx(2 - low) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_window_has_no_error() -> None:
    assert mean_and_error(np.array([3.0])) == (3.0, None)


def test_intervals_of_normal_samples_hold_their_mean_95_times_in_100() -> None:
    draws = np.random.default_rng(0).standard_normal((4000, 5))
    held = 0
    for values in draws:
        mean, error = mean_and_error(values)
        assert error is not None
        low, high = confidence_interval(mean, error, 5)
        held += low <= 0 <= high
    deviation = math.sqrt(0.95 * 0.05 / len(draws))
    assert abs(held / len(draws) - 0.95) < 3 * deviation
