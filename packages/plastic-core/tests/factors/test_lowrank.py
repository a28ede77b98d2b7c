"""The truncated SVD is the best approximation."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core.factors.certificate import certify
from plastic_core.factors.lowrank import Method, factorized_lowrank, svd_lowrank
from plastic_core.linalg import Float32, Float64
from plastic_core.testing import (
    Sample,
    anything,
    assert_orthonormal,
    matrices,
    repeatable,
    tolerance,
)

fractions = st.floats(0, 1)
methods: st.SearchStrategy[Method] = st.sampled_from(["exact", "randomized"])


def rank_of(fraction: float, A: Float32) -> int:
    return 1 + int(fraction * (min(A.shape) - 1))


def product(*factors: mx.array) -> Float64:
    U, S, Vh = (np.asarray(factor, dtype=np.float64) for factor in factors)
    dense: Float64 = (U * S) @ Vh
    return dense


@repeatable
@given(anything, fractions, methods)
def test_discarded_energy_is_the_tail_of_the_spectrum(
    sample: Sample, fraction: float, method: Method
) -> None:
    A, s = sample
    r = rank_of(fraction, A)
    difference = A - product(*factorized_lowrank(A, r, method=method))
    limit = tolerance(s, A.shape)
    assert abs(np.linalg.norm(difference) - np.linalg.norm(s[r:])) <= limit
    assert abs(np.linalg.norm(difference, 2) - max(s[r:], default=0.0)) <= limit


@repeatable
@given(anything, fractions, methods)
def test_factors_are_orthonormal_sorted_and_of_the_rank_asked_for(
    sample: Sample, fraction: float, method: Method
) -> None:
    A, s = sample
    r = rank_of(fraction, A)
    factors = factorized_lowrank(A, r, method=method)
    assert factors.method == method
    assert [f.shape for f in factors] == [(len(A), r), (r,), (r, A.shape[1])]
    assert {f.dtype for f in factors} == {mx.float32}
    assert factors.rank == r
    assert_orthonormal(factors.U)
    assert_orthonormal(factors.Vh.T)
    assert np.abs(np.asarray(factors.S) - s[:r]).max() <= tolerance(s, A.shape)


@repeatable
@given(anything, fractions, st.integers(0, 99))
def test_no_other_approximation_of_that_rank_is_closer(
    sample: Sample, fraction: float, seed: int
) -> None:
    A, s = sample
    r = rank_of(fraction, A)
    U, S, Vh = (np.asarray(f, dtype=np.float64) for f in factorized_lowrank(A, r))
    rng = np.random.default_rng(seed)
    best = np.linalg.norm(A - (U * S) @ Vh)
    for size in (1e-3, 0.1, 1.0):
        rival, _ = np.linalg.qr(U + size * rng.standard_normal(U.shape))
        assert best <= np.linalg.norm(A - rival @ (rival.T @ A)) + tolerance(s, A.shape)


@repeatable
@given(matrices())
def test_dense_approximation_is_the_product_of_the_factors(sample: Sample) -> None:
    A, s = sample
    r = rank_of(0.5, A)
    factors = factorized_lowrank(A, r)
    dense = np.asarray(svd_lowrank(A, r))
    assert np.linalg.norm(dense - product(*factors), 2) <= tolerance(s, A.shape)
    assert np.linalg.norm(dense - np.asarray(factors.dense()), 2) <= tolerance(s, A.shape)


@repeatable
@given(anything)
def test_truncating_twice_changes_nothing_more(sample: Sample) -> None:
    A, s = sample
    r = rank_of(0.5, A)
    once = svd_lowrank(A, r)
    twice = svd_lowrank(once, r)
    assert np.linalg.norm(np.asarray(once) - np.asarray(twice), 2) <= tolerance(s, A.shape)


def test_diagonal_matrix_keeps_its_largest_entries() -> None:
    A = mx.diag(mx.array([3.0, 2.0, 1.0]))
    assert factorized_lowrank(A, 2).S.tolist() == [3.0, 2.0]
    assert np.abs(np.asarray(svd_lowrank(A, 2)) - np.diag([3, 2, 0])).max() <= tolerance(3.0, (3,))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_dense_approximation_has_the_dtype_of_the_matrix(dtype: mx.Dtype) -> None:
    assert svd_lowrank(mx.eye(3).astype(dtype), 2).dtype == dtype


def test_numpy_float64_becomes_float32_and_float16_stays() -> None:
    assert svd_lowrank(np.eye(3), 2).dtype == mx.float32
    assert svd_lowrank(np.eye(3, dtype=np.float16), 2).dtype == mx.float16


def test_an_approximation_that_overflows_its_dtype_is_refused() -> None:
    A = np.array([[65504, 65504], [65504, 0]], dtype=np.float16)
    with pytest.raises(ValueError, match=r"rank-1 approximation overflows .*float16"):
        svd_lowrank(A, 1)


@pytest.mark.parametrize("rank", [-1, 0, 4])
def test_rank_out_of_range_names_the_limit(rank: int) -> None:
    message = rf"`rank` must be between 1 and min\(m, n\) = 3 .* shape \(3, 5\), got {rank}\."
    with pytest.raises(ValueError, match=message):
        factorized_lowrank(np.ones((3, 5)), rank)


def test_rank_must_be_an_integer() -> None:
    with pytest.raises(TypeError):
        factorized_lowrank(np.eye(3), 1.5)  # type: ignore[arg-type]


def test_auto_takes_the_cheaper_method_and_names_it() -> None:
    rng = np.random.default_rng(0)
    assert factorized_lowrank(rng.standard_normal((20, 30)), 5).method == "exact"
    assert factorized_lowrank(rng.standard_normal((600, 700)), 10).method == "randomized"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give a `rank`, a `tolerance`, or both"),
        ({"tolerance": -0.1}, "`tolerance` must be at least 1e-05.* got -0.1"),
        ({"rank": 9}, r"between 1 and min\(m, n\) = 4"),
        ({"rank": 1, "method": "fast"}, "`method` must be one of"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factorized_lowrank(np.eye(4), **options)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_a_matrix_without_entries_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"`A` has no entries"):
        factorized_lowrank(np.zeros(shape, np.float32), 1)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
@pytest.mark.parametrize("entry", [1e30, 1.0, 1e-30, 0.0])
def test_extreme_shapes_and_entries(shape: tuple[int, int], entry: float) -> None:
    A = np.full(shape, entry, np.float32)
    for method in ("exact", "randomized"):
        factors = factorized_lowrank(A, 1, method=method)
        expected = entry * np.sqrt(A.size)
        assert float(factors.S[0]) == pytest.approx(expected, rel=1e-5)
        assert certify(A, factors.U * factors.S, factors.Vh).relative_error <= 1e-6
