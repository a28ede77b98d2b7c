"""Spectra and the numbers read from them."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_select import (
    effective_rank,
    effective_rank_of_spectrum,
    energy_rank,
    optimal_threshold_rank,
    singular_values,
    stable_rank,
    stable_rank_of_spectrum,
    weighted_singular_values,
)

Build = Callable[[Sequence[float], int, int, int], NDArray[np.float64]]
Tolerance = Callable[[tuple[int, int], float], float]

values = st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.0, 1.0, 3.0]) | st.floats(1e-3, 10.0)
spectra = st.lists(values, min_size=1, max_size=10).map(lambda s: sorted(s, reverse=True))
extra = st.integers(0, 5)
seeds = st.integers(0, 99)


@given(spectra, extra, extra, seeds, st.sampled_from([1e-30, 1.0, 1e30]))
def test_the_spectrum_that_built_a_matrix_is_found_again(
    matrix_from_spectrum: Build,
    tolerance: Tolerance,
    s: list[float],
    rows: int,
    columns: int,
    seed: int,
    scale: float,
) -> None:
    m, n = len(s) + rows, len(s) + columns
    found = singular_values(scale * matrix_from_spectrum(s, m, n, seed))
    expected = scale * np.pad(s, (0, min(m, n) - len(s)))
    assert found.dtype == np.float64
    assert (np.diff(found) <= 0).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance((m, n), scale * s[0]))


@given(spectra, extra, seeds)
def test_ranks_lie_between_one_and_the_rank(
    matrix_from_spectrum: Build, s: list[float], columns: int, seed: int
) -> None:
    A = matrix_from_spectrum(s, len(s), len(s) + columns, seed)
    rank = sum(x > 0 for x in s)
    if rank == 0:
        assert stable_rank(A) == effective_rank(A) == 0.0
    else:
        rounding = 1e-12 * len(s)
        assert 1 <= stable_rank(A) <= rank + rounding
        assert 1 - rounding <= effective_rank(A) <= rank + rounding


@given(spectra.filter(lambda s: s[0] > 0), seeds)
def test_stable_and_effective_rank_ignore_scale_transposition_and_rotation(
    matrix_from_spectrum: Build, s: list[float], seed: int
) -> None:
    A = matrix_from_spectrum(s, len(s) + 1, len(s) + 3, seed)
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(A), len(A))))
    for rank in (stable_rank, effective_rank):
        for same in (8 * A, A.T, Q @ A):
            # The entropy's slope is steepest at zero: sigma log sigma of rounding.
            assert rank(same) == pytest.approx(rank(A), rel=1e-11)


def test_stable_rank_of_a_small_diagonal() -> None:
    assert stable_rank(np.diag([3.0, 2.0, 1.0])) == pytest.approx(14 / 9, rel=1e-15)


def test_k_equal_singular_values_have_stable_and_effective_rank_k() -> None:
    A = np.eye(7)[:, :4]
    assert stable_rank(A) == pytest.approx(4, rel=1e-14)
    assert effective_rank(A) == pytest.approx(4, rel=1e-14)


def test_stable_rank_leaves_out_what_is_not_above_eps() -> None:
    A = np.diag([2.0, 1.0, 1.0])
    assert stable_rank(A, 0.5) == 1.0
    assert stable_rank(A, 0.49) == 1.5


def test_a_zero_matrix_has_no_rank() -> None:
    zero = np.zeros((3, 5))
    assert singular_values(zero).tolist() == [0.0, 0.0, 0.0]
    assert stable_rank(zero) == effective_rank(zero) == 0.0
    assert energy_rank([0.0, 0.0], 0.5) == 0


@given(spectra.filter(lambda s: s[0] > 0), st.floats(0.01, 1.0))
def test_energy_rank_reaches_the_energy_and_one_less_does_not(s: list[float], e: float) -> None:
    energy = np.square(s)
    r = energy_rank(s, e)
    slack = 20 * len(s) * float(np.finfo(np.float64).eps) * energy.sum()
    assert energy[:r].sum() >= e * energy.sum() - slack
    assert energy[: r - 1].sum() < e * energy.sum() + slack


@given(spectra, st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_energy_rank_grows_with_the_energy(s: list[float], a: float, b: float) -> None:
    assert energy_rank(s, min(a, b)) <= energy_rank(s, max(a, b))


def test_energy_rank_counts_nine_of_ten_as_ninety_per_cent() -> None:
    assert energy_rank([3.0, 1.0], 0.9) == 1
    assert energy_rank([3.0, 1.0], 0.901) == 2
    assert energy_rank([3.0, 1.0, 0.0], 1.0) == 2


@given(spectra, st.integers(1, 6), seeds)
def test_weighted_energy_is_the_mean_energy_of_the_output(
    matrix_from_spectrum: Build, s: list[float], tokens: int, seed: int
) -> None:
    A = matrix_from_spectrum(s, len(s), len(s) + 2, seed)
    x = np.random.default_rng(seed).standard_normal((tokens, A.shape[1]))
    found = weighted_singular_values(A, x.T @ x / tokens)  # singular with fewer tokens than inputs
    energy = np.square(x @ A.T).sum() / tokens
    assert found.shape == (len(s),)
    assert np.square(found).sum() == pytest.approx(energy, rel=1e-12)


def test_the_identity_gram_changes_nothing(matrix_from_spectrum: Build) -> None:
    A = matrix_from_spectrum([4.0, 2.0, 1.0], 5, 3, 0)
    np.testing.assert_allclose(weighted_singular_values(A, np.eye(3)), [4, 2, 1], rtol=1e-14)


def test_the_gram_weights_each_input() -> None:
    found = weighted_singular_values(np.diag([3.0, 2.0, 1.0]), np.diag([0.0, 1.0, 25.0]))
    np.testing.assert_allclose(found, [5, 2, 0], rtol=1e-14)


def test_energy_rank_of_equal_values_is_their_fraction() -> None:
    assert [energy_rank(np.ones(20), i / 20) for i in range(1, 21)] == list(range(1, 21))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.bool_])
def test_any_real_dtype_is_read(dtype: type) -> None:
    assert singular_values(np.array([[0, 1], [0, 0]], dtype)).tolist() == [1.0, 0.0]


def test_the_argument_is_not_modified() -> None:
    A = np.arange(6.0).reshape(2, 3)
    singular_values(A)
    assert A.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2), (0, 3), (3, 0)])
def test_what_is_not_a_matrix_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`A` must be a matrix .* got shape \("):
        singular_values(np.ones(shape))


def test_entries_that_are_not_finite_are_counted_and_the_first_is_named() -> None:
    A = np.ones((3, 4))
    A[1, 2], A[2, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 NaN or infinite of 12 entries, the first at \(1, 2\)"):
        stable_rank(A)


@pytest.mark.parametrize("A", [[[1j]], [["1"]], [[1, 2], [3]]])
def test_what_is_not_real_numbers_is_refused(A: object) -> None:
    with pytest.raises(TypeError, match="`A` must hold real numbers"):
        singular_values(A)  # type: ignore[arg-type]


def test_an_overflowing_spectrum_is_refused() -> None:
    with pytest.raises(ValueError, match="Scale it down"):
        singular_values(np.full((4, 4), 1.7e308))


@pytest.mark.parametrize(
    ("s", "message"),
    [
        ([1.0, 2.0], "non-increasing"),
        ([1.0, -1.0], "non-negative"),
        ([], "at least one value"),
        ([[1.0]], "got shape"),
        ([np.nan], "the first at"),
    ],
)
def test_what_is_not_a_spectrum_is_refused(s: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        energy_rank(s, 0.5)  # type: ignore[arg-type]


def test_arguments_out_of_range_name_the_limit() -> None:
    with pytest.raises(ValueError, match=r"`eps` .* below 1, got 1"):
        stable_rank(np.eye(2), 1.0)
    with pytest.raises(ValueError, match=r"`retained_energy` .* at most 1 .* got 1.5"):
        energy_rank([1.0], 1.5)
    with pytest.raises(ValueError, match=r"min\(m, n\) = 2 values .* got 1"):
        optimal_threshold_rank([1.0], (2, 3))
    with pytest.raises(ValueError, match=r"`noise` .* got -1"):
        optimal_threshold_rank([1.0], (1, 3), noise=-1.0)
    with pytest.raises(ValueError, match=r"`shape` must be two integers .* got \(0, 3\)"):
        optimal_threshold_rank([1.0], (0, 3))


def test_a_gram_of_another_shape_or_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`gram` must have shape \(3, 3\) .* got \(2, 2\)"):
        weighted_singular_values(np.ones((2, 3)), np.eye(2))
    for gram in (np.diag([1.0, -1.0]), np.array([[1.0, 1.0], [0.0, 1.0]])):
        with pytest.raises(ValueError, match="symmetric and positive semidefinite"):
            weighted_singular_values(np.ones((2, 2)), gram)


def test_ranks_of_a_spectrum_are_those_of_its_matrix() -> None:
    s = np.array([3.0, 2.0, 1.0, 0.0])
    assert stable_rank_of_spectrum(s) == pytest.approx(stable_rank(np.diag(s)))
    assert effective_rank_of_spectrum(s) == pytest.approx(effective_rank(np.diag(s)))
    assert effective_rank_of_spectrum([2.0, 2.0]) == pytest.approx(2.0)
