"""The theorem-guided rank: it chooses where there is a clear cut, and only there."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_select import (
    budget_rank,
    rank_bracket,
    rank_identity,
    theorem_guided_rank,
    theorem_rank,
)

Build = Callable[[Sequence[float], int, int, int], NDArray[np.float64]]

sides = st.integers(2, 40)
targets = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.8])
spectra = st.lists(st.floats(0.0, 10.0), min_size=1, max_size=20).map(
    lambda s: sorted(s, reverse=True)
)


@given(sides, sides, targets, st.data(), st.sampled_from([0.0, 1e-8, 1e-4, 1e-2]))
def test_a_projector_plus_small_noise_gets_its_rank_whenever_it_fits_the_budget(
    matrix_from_spectrum: Build, m: int, n: int, target: float, data: st.DataObject, noise: float
) -> None:
    k = data.draw(st.integers(1, budget_rank((m, n), target)))
    seed = data.draw(st.integers(0, 99))
    E = np.random.default_rng(seed).standard_normal((m, n))
    A = matrix_from_spectrum([1.0] * k, m, n, seed) + noise * E / np.linalg.norm(E, 2)
    assert theorem_guided_rank(A, target) == k


@given(sides, targets, st.data())
def test_a_projector_too_large_for_the_budget_gets_the_budget_rank(
    n: int, target: float, data: st.DataObject
) -> None:
    budget = budget_rank((n, n), target)
    k = data.draw(st.integers(budget, n))
    assert theorem_rank([1.0] * k + [0.0] * (n - k), (n, n), target) == budget


@given(spectra, st.integers(0, 20), targets)
def test_the_rank_is_never_above_the_budget_nor_below_one(
    s: list[float], longer: int, target: float
) -> None:
    for shape in ((len(s), len(s) + longer), (len(s) + longer, len(s))):
        assert 1 <= theorem_rank(s, shape, target) <= budget_rank(shape, target)


@given(spectra.filter(lambda s: len(s) > 1 and s[0] > 0), st.data())
def test_the_bracket_holds_the_cut_and_its_width_is_the_rank_of_the_undecided(
    s: list[float], data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, len(s) - 1))
    lowest, highest = rank_bracket(s, rank)
    sigma = np.maximum(np.array(s) / s[0], np.finfo(np.float64).eps)
    h = 1 / (1 + (sigma[rank - 1] / sigma) * (sigma[rank] / sigma))
    assert lowest <= rank <= highest
    assert highest - lowest == np.count_nonzero(h * (1 - h) > 0.01 * 0.99 * (1 + 1e-9))


def test_the_bracket_is_what_the_identity_says_of_a_matrix_with_clear_and_undecided_parts() -> None:
    s = [1.0, 1.0, 1e-20, 1e-20, 1e-20]  # three values below rounding: h = 1, 1, 1/2, 1/2, 1/2
    lowest, highest = rank_bracket(s, 3)
    H = np.diag([1.0, 1.0, 0.5, 0.5, 0.5])
    found = rank_identity(H, [1, 0], [1, -1])
    assert (lowest, highest) == (5 - found.rank_g, found.rank_f) == (2, 5)
    assert highest - lowest == found.rank_lcm


def test_an_unambiguous_cut_has_a_bracket_of_no_width() -> None:
    assert rank_bracket([1.0, 1.0, 1e-3, 1e-3], 2) == (2, 2)


def test_the_widest_of_two_gaps_in_the_bracket_is_taken() -> None:
    s = [8.0, 8.0, 8.0, 3.0, 2.9, 1.0, 1.0, 1.0] + [0.9] * 12
    assert rank_bracket(s, 10) == (0, 20)
    assert theorem_rank(s, (20, 20), 0.0) == 5  # 2.9 beats 2.67, and what follows is flat


def test_the_rank_differs_from_the_budget_where_a_gap_stands_out() -> None:
    s = [1.0, 0.9, 0.8] + [0.1] * 17
    assert budget_rank((20, 20), 0.2) == 8
    assert theorem_rank(s, (20, 20), 0.2) == 3


@pytest.mark.parametrize(
    "s",
    [
        np.ones(40),
        1.0 / np.arange(1, 41),
        1.0 / np.arange(1, 41) ** 2,
        0.7 ** np.arange(40),
        0.5 ** np.arange(40),
        np.linspace(1, 0, 40),
    ],
    ids=["flat", "power 1", "power 2", "slow exponential", "fast exponential", "linear"],
)
@pytest.mark.parametrize("target", [0.0, 0.3, 0.6])
def test_a_smooth_spectrum_gets_the_budget_rank(s: NDArray[np.float64], target: float) -> None:
    assert theorem_rank(s, (40, 40), target) == budget_rank((40, 40), target)


def test_a_random_matrix_gets_the_budget_rank() -> None:
    A = np.random.default_rng(0).standard_normal((60, 90))
    assert theorem_guided_rank(A, 0.4) == budget_rank((60, 90), 0.4) == 21


def test_one_outlier_does_not_swallow_a_bulk_that_outweighs_it() -> None:
    s = [3.0] + [1.0] * 39
    assert theorem_rank(s, (40, 40), 0.0) == 20
    assert theorem_rank(s, (40, 40), 0.7) == 1  # within a budget of 6 the outlier outweighs it


@pytest.mark.parametrize(("gap", "rank"), [(1.9, 10), (2.1, 5)])
def test_a_gap_stands_out_from_twice_the_fall_behind_it(gap: float, rank: int) -> None:
    assert theorem_rank([gap] * 5 + [1.0] * 15, (20, 20), 0.0) == rank


def test_a_wider_gap_outside_the_bracket_is_not_taken() -> None:
    s = [1000.0] + [10.0] * 3 + [1.0] * 16  # what the budget of 10 keeps beyond doubt: 4
    assert rank_bracket(s, 10)[0] == 4
    assert theorem_rank(s, (20, 20), 0.0) == 4


def test_a_gap_narrower_than_the_fall_behind_it_is_not_taken() -> None:
    s = [10.0, 4.0, 3.0, 2.0] + [1.0] * 6
    assert theorem_rank(s, (10, 10), 0.0) == budget_rank((10, 10), 0.0) == 5


def test_a_zero_matrix_and_a_single_entry_get_rank_one() -> None:
    assert theorem_guided_rank(np.zeros((6, 9)), 0.0) == 1
    assert theorem_guided_rank([[5.0]], 0.5) == 1
    assert theorem_guided_rank(np.ones((1, 7)), 0.0) == 1


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_rank_does_not_depend_on_the_scale(scale: float) -> None:
    s = scale * np.array([1.0, 0.9, 0.8] + [0.1] * 17)
    assert theorem_rank(s, (20, 20), 0.2) == 3


def test_arguments_out_of_range_name_the_limit() -> None:
    with pytest.raises(ValueError, match=r"`target_compression` .* below 1 .* got 1\.0"):
        theorem_guided_rank(np.eye(3), 1.0)
    with pytest.raises(ValueError, match=r"min\(m, n\) = 3 values"):
        theorem_rank([1.0, 1.0], (3, 4), 0.5)
    with pytest.raises(ValueError, match=r"`rank` must be between 1 and 2 .* got 3"):
        rank_bracket([3.0, 2.0, 1.0], 3)
    with pytest.raises(ValueError, match="must not all be zero"):
        rank_bracket([0.0, 0.0], 1)
