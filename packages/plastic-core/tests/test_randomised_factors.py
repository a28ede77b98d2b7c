"""Randomised factors keep every promise of exact ones, and say how far they are off."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import add_factors, certify, difference, factorized_lowrank, grow_factors
from plastic_core.testing import (
    Sample,
    assert_orthonormal,
    bits,
    matrices,
    matrix_from_spectrum,
    repeatable,
    tolerance,
)

SPECTRA = {
    "slow": lambda i: i**-0.5,
    "inverse": lambda i: 1 / i,
    "steep": lambda i: np.exp(-i / 8),
    "flat": lambda i: np.ones_like(i),
    "cliff": lambda i: np.where(i <= 30, 1.0, 1e-3),
    "plateaus": lambda i: np.where(i <= 10, 1.0, np.where(i <= 60, 0.5, 0.1)),
    "beyond float32": lambda i: 10.0 ** -(i / 4),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(300, 240), (200, 350)])
@pytest.mark.parametrize("rank", [1, 8, 30, 33])
def test_error_is_within_a_percent_of_the_least(
    name: str, shape: tuple[int, int], rank: int
) -> None:
    s = SPECTRA[name](np.arange(1.0, min(shape) + 1))
    A = matrix_from_spectrum(s, *shape, seed=rank).astype(np.float32)
    factors = factorized_lowrank(A, rank, method="randomised")
    U, S, Vh = (np.asarray(f, np.float64) for f in factors)
    rounding = tolerance(s, shape)
    assert np.linalg.norm(A - (U * S) @ Vh) <= 1.01 * np.linalg.norm(s[rank:]) + rounding
    assert_orthonormal(U)
    assert_orthonormal(Vh.T)
    assert (np.diff(S) <= 0).all()


@repeatable
@given(matrices(max_side=30), st.floats(1e-4, 0.9), st.sampled_from(["exact", "randomised"]))
def test_tolerance_is_kept_by_nearly_the_least_rank(
    sample: Sample, limit: float, method: str
) -> None:
    A, s = sample
    factors = factorized_lowrank(A, tolerance=limit, method=method)
    assert factors.certificate.relative_error <= limit
    tails = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0))
    least = int(np.argmax(tails <= limit * tails[0] * (1 - 1e-4)))
    assert factors.rank <= 1.05 * least + 1
    if not A.any():
        assert factors.rank == 0


@repeatable
@given(
    matrices(scales=(2.0**-100, 1.0, 2.0**90)),
    st.floats(0, 1),
    st.sampled_from(["exact", "randomised"]),
    st.sampled_from([mx.float32, mx.bfloat16]),
)
def test_factors_carry_their_true_errors(
    sample: Sample, fraction: float, method: str, dtype: mx.Dtype
) -> None:
    A, s = sample
    rank = 1 + int(fraction * (min(A.shape) - 1))
    factors = factorized_lowrank(A, rank, method=method, dtype=dtype)
    U, S, Vh = (np.asarray(f.astype(mx.float32), np.float64) for f in factors)
    rounding = float(np.finfo(np.float32).eps)  # the certificate folds S into Vh in float32
    norms = (np.linalg.norm(A.astype(np.float64)), s[0])
    if not A.any():
        assert factors.certificate == (0.0, 0.0)
        return
    E = A - (U * S) @ Vh
    relative, spectral = np.linalg.norm(E) / norms[0], np.linalg.norm(E, 2) / norms[1]
    certificate = factors.certificate
    assert abs(certificate.relative_error - relative) <= 1e-3 * relative + rounding
    assert certificate.spectral_error >= spectral * (1 - 1e-3) - rounding
    assert certificate.spectral_error <= 1.07 * spectral + rounding


def test_the_same_key_gives_the_same_bits_and_any_key_the_same_spectrum() -> None:
    A = matrix_from_spectrum(1 / np.arange(1.0, 201), 200, 260, seed=0).astype(np.float32)
    once, again, other = (factorized_lowrank(A, 20, key=k, method="randomised") for k in (3, 3, 4))
    assert [bits(f) for f in once] == [bits(f) for f in again]
    assert np.abs(np.asarray(once.S) - np.asarray(other.S)).max() <= 1e-3 * float(once.S[0])
    assert factorized_lowrank(A, 5, key=mx.random.key(1), method="randomised").rank == 5


def test_auto_takes_the_cheaper_method_and_names_it() -> None:
    rng = np.random.default_rng(0)
    assert factorized_lowrank(rng.standard_normal((20, 30)), 5).method == "exact"
    assert factorized_lowrank(rng.standard_normal((600, 700)), 10).method == "randomised"


def test_growing_equals_starting_again() -> None:
    s = 1 / np.arange(1.0, 241)
    A = matrix_from_spectrum(s, 240, 300, seed=1).astype(np.float32)
    grown = grow_factors(A, factorized_lowrank(A, 12), 40)
    least = np.linalg.norm(s[40:]) / np.linalg.norm(s)
    assert grown.certificate.relative_error <= 1.01 * least
    assert_orthonormal(grown.U)


def test_a_sum_and_a_difference_of_factors_are_never_formed() -> None:
    A, B = (
        matrix_from_spectrum(np.array([3.0, 2.0, 1.0]), 50, 40, seed=k).astype(np.float32)
        for k in (1, 2)
    )
    a, b = factorized_lowrank(A, 3), factorized_lowrank(B, 3)
    total, rest = add_factors(a, b), factorized_lowrank(difference(a, b), 6)
    for factors, dense in ((total, A + B), (rest, A - B)):
        U, S, Vh = (np.asarray(f, np.float64) for f in factors)
        assert np.linalg.norm((U * S) @ Vh - dense, 2) <= tolerance(6.0, dense.shape)


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
    for method in ("exact", "randomised"):
        factors = factorized_lowrank(A, 1, method=method)
        expected = entry * np.sqrt(A.size)
        assert float(factors.S[0]) == pytest.approx(expected, rel=1e-5)
        assert certify(A, factors.U * factors.S, factors.Vh).relative_error <= 1e-6
