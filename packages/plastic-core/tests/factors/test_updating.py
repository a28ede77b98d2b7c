"""Factors that grow and add up are those of starting again."""

import tracemalloc

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core.factors.factors import Factors
from plastic_core.factors.lowrank import factorized_lowrank
from plastic_core.factors.operators import difference
from plastic_core.factors.quantize import quantize_factors
from plastic_core.factors.updating import add_factors, grow_factors
from plastic_core.linalg import Float64, arrays
from plastic_core.testing import (
    EPS,
    Sample,
    anything,
    assert_orthonormal,
    bits,
    matrix_from_spectrum,
    repeatable,
    tolerance,
)

HALF_STEPS = {mx.float32: EPS / 2, mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11}
fractions = st.floats(0, 1)
sides = st.integers(1, 20)
seeds = st.integers(0, 99)


def product(factors: Factors) -> Float64:
    U, S, Vh = (np.asarray(F.astype(mx.float32), dtype=np.float64) for F in factors)
    dense: Float64 = (U * S) @ Vh
    return dense


def any_factors(m: int, n: int, rank: int, seed: int) -> Factors:
    """Factors whose columns are neither orthonormal nor in order."""
    rng = np.random.default_rng(seed)
    U, S, Vh = (rng.standard_normal(shape, dtype=np.float32) for shape in ((m, rank), rank, n))
    return Factors(mx.array(U), mx.array(S), mx.array(np.outer(S, Vh) + U[:1].T))


def assert_factors(factors: Factors, dense: Float64, limit: float) -> None:
    """Orthonormal, in order, within ``limit`` of ``dense``, and certified."""
    assert_orthonormal(factors.U)
    assert_orthonormal(factors.Vh.T)
    S = np.asarray(factors.S)
    assert (S >= 0).all()
    assert (np.diff(S) <= 0).all()
    error, norm = np.linalg.norm(dense - product(factors)), np.linalg.norm(dense)
    assert error <= limit
    assert factors.certificate is not None
    if norm:
        measured = factors.certificate.relative_error * norm
        assert abs(measured - error) <= 1e-3 * error + 10 * EPS * norm


def least(dense: Float64, rank: int) -> float:
    return float(np.linalg.norm(np.linalg.svd(dense, compute_uv=False)[rank:]))


@repeatable
@given(anything, fractions, fractions, st.sampled_from(["exact", "randomized"]), seeds)
def test_grown_factors_are_those_of_starting_again(
    sample: Sample, start: float, more: float, method: str, key: int
) -> None:
    A, s = sample
    k = min(A.shape)
    if k == 1:
        return
    first = 1 + int(start * (k - 2))
    rank = first + 1 + int(more * (k - first - 1))
    factors = factorized_lowrank(A, first, method=method, key=key)  # type: ignore[arg-type]
    grown = grow_factors(A, factors, rank, key=key)
    assert grown.rank == rank
    assert grown.method == "randomized"
    limit = 1.01 * float(np.linalg.norm(s[rank:])) + tolerance(s, A.shape)
    assert_factors(grown, A.astype(np.float64), limit)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("shape", [(240, 300), (300, 240)])
@pytest.mark.parametrize(("first", "rank"), [(1, 17), (12, 40), (48, 49), (20, 240)])
def test_growing_on_a_space_smaller_than_the_matrix_loses_less_than_a_percent(
    shape: tuple[int, int], first: int, rank: int, dtype: mx.Dtype
) -> None:
    s = 1 / np.arange(1.0, 241)
    A = matrix_from_spectrum(s, *shape, seed=1).astype(np.float32)
    factors = factorized_lowrank(A, first, dtype=dtype)
    before = [bits(F) for F in factors]
    grown = grow_factors(A, factors, rank)
    # Directions that were rounded are kept as they are.
    rounding = (10 * EPS + HALF_STEPS[dtype]) * float(np.linalg.norm(s))
    limit = 1.01 * float(np.linalg.norm(s[rank:])) + rounding
    assert_factors(grown, A.astype(np.float64), limit)
    assert {F.dtype for F in grown} == {mx.float32}
    assert [bits(F) for F in factors] == before


def test_growing_finds_repeated_values_that_narrow_blocks_pass_by() -> None:
    s = np.concatenate([np.full(60, 9.0), np.arange(1.0, 141) ** -0.5])
    A = matrix_from_spectrum(s, 200, 220, seed=2).astype(np.float32)
    grown = grow_factors(A, factorized_lowrank(A, 20), 60)
    limit = 1.01 * float(np.linalg.norm(s[60:])) + 10 * EPS * float(np.linalg.norm(s))
    assert_factors(grown, A.astype(np.float64), limit)


def test_factors_of_no_components_grow() -> None:
    A = np.random.default_rng(0).standard_normal((9, 7), dtype=np.float32)
    nothing = factorized_lowrank(np.zeros((9, 7)), tolerance=0.1)
    assert nothing.rank == 0
    limit = 1.01 * least(A.astype(np.float64), 3) + tolerance(A, A.shape)
    assert_factors(grow_factors(A, nothing, 3), A.astype(np.float64), limit)


def test_exact_factors_grow_by_directions_of_no_weight() -> None:
    A = matrix_from_spectrum(np.array([3.0, 2.0]), 30, 40, seed=0).astype(np.float32)
    grown = grow_factors(A, factorized_lowrank(A, 2), 6)
    assert_factors(grown, A.astype(np.float64), tolerance(3.0, A.shape))
    assert np.asarray(grown.S)[2:].max() <= tolerance(3.0, A.shape)


@repeatable
@given(sides, sides, st.integers(0, 9), st.integers(0, 9), seeds)
def test_a_sum_of_factors_is_the_dense_sum(m: int, n: int, r: int, q: int, seed: int) -> None:
    a, b = any_factors(m, n, r, seed), any_factors(m, n, q, seed + 1)
    dense, terms = product(a) + product(b), np.linalg.norm(product(a)) + np.linalg.norm(product(b))
    total = add_factors(a, b)
    assert total.rank == min(m, n, r + q)
    rounding = tolerance(float(terms), dense.shape)
    assert_factors(total, dense, rounding)
    s = np.linalg.svd(dense, compute_uv=False)[: total.rank]
    assert np.abs(np.asarray(total.S) - s).max(initial=0.0) <= rounding


@repeatable
@given(sides, sides, st.integers(1, 9), st.integers(0, 9), fractions, seeds)
def test_a_truncated_sum_is_the_best_of_its_rank(
    m: int, n: int, r: int, q: int, fraction: float, seed: int
) -> None:
    a, b = any_factors(m, n, r, seed), any_factors(m, n, q, seed + 1)
    dense, terms = product(a) + product(b), np.linalg.norm(product(a)) + np.linalg.norm(product(b))
    rank = 1 + int(fraction * (min(m, n, r + q) - 1))
    rounding = tolerance(float(terms), dense.shape)
    assert_factors(add_factors(a, b, rank=rank), dense, least(dense, rank) + rounding)
    if np.linalg.norm(dense) > 100 * rounding:
        within = add_factors(a, b, tolerance=0.3)
        assert_factors(within, dense, 0.3 * (1 + 1e-3) * float(np.linalg.norm(dense)))
        assert least(dense, within.rank - 1) > 0.3 * np.linalg.norm(dense) - rounding


@repeatable
@given(
    st.integers(2, 30), st.integers(2, 30), st.integers(1, 9), st.floats(-4, 0), fractions, seeds
)
def test_a_difference_of_close_factors_is_factored_without_forming_it(
    m: int, n: int, r: int, exponent: float, fraction: float, seed: int
) -> None:
    a = any_factors(m, n, r, seed)
    rng = np.random.default_rng(seed)
    moved = (a.U * (1 + 10**exponent * mx.array(rng.standard_normal(a.U.shape)))).astype(mx.float32)
    minus = difference(a, Factors(moved, a.S, a.Vh))
    U, S, Vh = (np.asarray(F) for F in a)
    dense = ((U * S).astype(np.float64) - np.asarray(moved) * S) @ Vh
    rank = 1 + int(fraction * (min(m, n, 2 * r) - 1))
    # What cancels is rounded before: eps of the terms remains.
    rounding = tolerance(2 * float(np.linalg.norm(product(a))), dense.shape)
    factors = factorized_lowrank(minus, rank)
    assert factors.method == "exact"
    assert_orthonormal(factors.U)
    assert np.linalg.norm(dense - product(factors)) <= least(dense, rank) + rounding


def test_packed_factors_add_up_through_their_difference() -> None:
    a = any_factors(40, 64, 6, seed=0)
    left = difference(a, quantize_factors(*a, bits=8))
    assert left.norm() <= 0.02 * np.linalg.norm(product(a))
    assert factorized_lowrank(left, 3).rank == 3


def test_nothing_added_to_nothing_is_nothing() -> None:
    nothing = factorized_lowrank(np.zeros((4, 5)), tolerance=0.1)
    for total in (add_factors(nothing, nothing), add_factors(nothing, nothing, tolerance=0.1)):
        assert [F.shape for F in total] == [(4, 0), (0,), (0, 5)]
        assert total.certificate == (0.0, 0.0)


def test_neither_a_sum_nor_a_difference_of_factors_is_formed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arrays, "BLOCK", 2**14)
    a, b = any_factors(800, 900, 3, seed=0), any_factors(800, 900, 4, seed=1)
    tracemalloc.start()
    add_factors(a, b, rank=5)
    factorized_lowrank(difference(a, b), 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 800 * 900 * 4 / 3


@pytest.mark.parametrize("rank", [2, 1, 0, 4])
def test_growing_names_the_limits_of_the_rank(rank: int) -> None:
    factors = factorized_lowrank(np.eye(3), 2)
    message = rf"above the present 2 and at most min\(m, n\) = 3, got {rank}\."
    with pytest.raises(ValueError, match=message):
        grow_factors(np.eye(3), factors, rank)


def test_growing_asks_for_an_integer_and_for_fitting_finite_factors() -> None:
    factors = factorized_lowrank(np.eye(3, 4), 1)
    with pytest.raises(TypeError, match=r"`rank` must be an integer, got 2\.5\."):
        grow_factors(np.eye(3, 4), factors, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`factors` of shape \(3, 4\) do not fit `A` of \(4, 3\)"):
        grow_factors(np.eye(4, 3), factors, 2)
    wrong = Factors(factors.U, factors.S * float("nan"), factors.Vh)
    with pytest.raises(ValueError, match=r"`S` must be finite in float32, but 1 of its 1 entries"):
        grow_factors(np.eye(3, 4), wrong, 2)
    hole = np.eye(3, 4)
    hole[1, 2] = np.inf
    with pytest.raises(ValueError, match=r"`A` must be finite .* 1 of its 12 .* \(1, 2\)"):
        grow_factors(hole, factors, 2)


def test_a_sum_names_shapes_that_differ_and_ranks_out_of_range() -> None:
    a, b = any_factors(3, 4, 2, seed=0), any_factors(4, 3, 2, seed=0)
    with pytest.raises(ValueError, match=r"must have one shape, got \(3, 4\) and \(4, 3\)"):
        add_factors(a, b)
    message = r"`rank` must be between 1 and min\(m, n\) = 3 .* shape \(3, 4\), got 4\."
    with pytest.raises(ValueError, match=message):
        add_factors(a, a, rank=4)
    one = any_factors(3, 4, 1, seed=0)
    with pytest.raises(ValueError, match=r"between 1 and the rank of the factors = 2 .* got 3\."):
        add_factors(one, one, rank=3)
