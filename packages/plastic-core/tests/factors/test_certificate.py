"""A certificate tells the errors of the numbers that are stored, whatever they are."""

import tracemalloc

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import linalg
from plastic_core.factors.certificate import certify
from plastic_core.factors.factors import Certificate, Factors
from plastic_core.factors.lowrank import Method, factorized_lowrank
from plastic_core.factors.operators import difference
from plastic_core.linalg import Float64, Matrix, arrays
from plastic_core.testing import EPS, Sample, anything, matrix_from_spectrum, repeatable, tolerance

fractions = st.floats(0, 1)
dtypes = st.sampled_from([mx.float16, mx.bfloat16, mx.float32])
methods: st.SearchStrategy[Method] = st.sampled_from(["exact", "randomized"])


def as_float64(array: Matrix) -> Float64:
    return linalg.to_numpy(array).astype(np.float64)


def assert_true(certificate: Certificate, A: Float64, difference: Float64, slack: float) -> None:
    """The errors of ``A`` are those of the certificate, up to ``slack`` of its norms."""
    if not A.any():
        assert certificate == (0.0, 0.0)
        return
    exact = np.linalg.norm(difference) / np.linalg.norm(A)
    spectral = np.linalg.norm(difference, 2) / np.linalg.norm(A, 2)
    assert abs(certificate.relative_error - exact) <= 1e-3 * exact + slack
    assert spectral * (1 - 1e-3) - slack <= certificate.spectral_error
    assert certificate.spectral_error <= 1.1 * spectral + slack


def assert_certified(A: Matrix, factors: Factors) -> None:
    """The certificate of ``factors`` is true; ``S * Vh`` was rounded once to be measured."""
    U, S, Vh = (as_float64(F) for F in factors)
    A64 = as_float64(A)
    assert factors.certificate is not None
    rounding = EPS + tolerance(1.0, A64.shape, np.float64)
    assert_true(factors.certificate, A64, A64 - (U * S) @ Vh, rounding)


@repeatable
@given(anything, fractions, dtypes)
def test_certify_measures_the_numbers_that_are_handed_in(
    sample: Sample, fraction: float, dtype: mx.Dtype
) -> None:
    A, s = sample
    U, S, Vh = factorized_lowrank(A, 1 + int(fraction * (min(A.shape) - 1)))
    if dtype == mx.float16:
        A, S = A / np.float32(s[0] or 1), S / (s[0] or 1)
    stored = [F.astype(dtype) for F in (U, S[:, None] * Vh)]
    left, right = (as_float64(F) for F in stored)
    rounding = tolerance(1.0, A.shape, np.float64)
    assert_true(certify(A, *stored), as_float64(A), A - left @ right, rounding)


@repeatable
@given(anything, fractions, dtypes, methods, st.integers(0, 9))
def test_factors_carry_the_certificate_of_what_they_hold(
    sample: Sample, fraction: float, dtype: mx.Dtype, method: Method, key: int
) -> None:
    A, s = sample
    if dtype == mx.float16:
        A = A / np.float32(s[0] or 1)
    rank = 1 + int(fraction * (min(A.shape) - 1))
    assert_certified(A, factorized_lowrank(A, rank, dtype=dtype, method=method, key=key))


@repeatable
@given(anything, st.integers(0, 3), st.integers(0, 99))
def test_certify_holds_for_any_factors_good_or_bad(sample: Sample, rank: int, seed: int) -> None:
    A, s = sample
    rng = np.random.default_rng(seed)
    U = rng.standard_normal((len(A), rank))
    Vh = (float(s[0]) * rng.standard_normal((rank, A.shape[1]))).astype(np.float32)
    if not A.any():
        return
    U32, A64 = U.astype(np.float32), A.astype(np.float64)
    rounding = tolerance(1.0, A.shape, np.float64)
    assert_true(certify(A, U32, Vh), A64, A64 - U32.astype(np.float64) @ Vh, rounding)


@repeatable
@given(
    st.integers(2, 40), st.integers(2, 40), st.integers(1, 8), st.floats(-6, 0), st.integers(0, 99)
)
def test_certify_is_true_where_the_matrix_itself_is_a_small_difference(
    m: int, n: int, r: int, exponent: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    U, Vh = (rng.standard_normal(s, dtype=np.float32) for s in ((m, r), (r, n)))
    W = U @ Vh + (10**exponent * rng.standard_normal((m, n))).astype(np.float32)
    E = W - U.astype(np.float64) @ Vh
    u, v = rng.standard_normal((m, 1), dtype=np.float32), (0.1 * E[:1]).astype(np.float32)
    minus = difference(W, Factors(mx.array(U), mx.ones(r), mx.array(Vh)))
    rounding = tolerance(1.0, E.shape, np.float64) * 10**-exponent
    assert_true(certify(minus, u, v), E, E - u.astype(np.float64) @ v, rounding)
    assert_certified(E.astype(np.float32), factorized_lowrank(E.astype(np.float32), 1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("method", ["exact", "randomized"])
@pytest.mark.parametrize("scale", [1e-40, 1e-36, 1e-30, 1.0, 1e30])
def test_certificates_of_the_smallest_matrices_are_true(
    shape: tuple[int, int], method: Method, scale: float
) -> None:
    A = (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)
    factors = factorized_lowrank(A, 1, method=method)
    U, S, Vh = (as_float64(F) for F in factors)
    A64 = A.astype(np.float64)
    assert factors.certificate is not None
    # Of a subnormal norm the stored numbers themselves hold less than float32's precision.
    rounding = 2 * EPS + 2.0**-148 / float(np.linalg.norm(A64))
    assert_true(factors.certificate, A64, A64 - (U * S) @ Vh, rounding)


@pytest.mark.parametrize("method", ["exact", "randomized"])
@pytest.mark.parametrize("rank", [1, 2, 8, 24])
@pytest.mark.parametrize("shape", [(160, 240), (240, 160)])
def test_the_spectral_error_of_a_flat_spectrum_is_within_its_bounds(
    shape: tuple[int, int], rank: int, method: Method
) -> None:
    A = np.random.default_rng(rank).standard_normal(shape, dtype=np.float32)
    assert_certified(A, factorized_lowrank(A, rank, method=method))


def test_certificate_of_nothing_kept_is_one() -> None:
    A = matrix_from_spectrum(np.array([4.0, 3.0]), 5, 7, seed=2).astype(np.float32)
    nothing = certify(A, np.zeros((5, 0), np.float32), np.zeros((0, 7), np.float32))
    assert nothing.relative_error == pytest.approx(1.0, rel=1e-6)
    assert 1.0 <= nothing.spectral_error <= 1.1


def test_certificate_by_hand() -> None:
    A, u, v = np.diag([4.0, 3.0]), np.array([[1.0], [0.0]]), np.array([[4.0, 0.0]])
    certificate = certify(A, u, v)
    assert certificate.relative_error == pytest.approx(0.6, rel=1e-6)
    assert 0.75 <= certificate.spectral_error <= 1.1 * 0.75


def test_certificate_of_a_zero_matrix_missed_is_infinite() -> None:
    missed = certify(np.zeros((2, 2)), np.ones((2, 1)), np.ones((1, 2)))
    assert missed == (float("inf"), float("inf"))


def test_certificate_of_no_entries_is_zero() -> None:
    for m, n in ((0, 3), (3, 0), (0, 0)):
        assert certify(np.zeros((m, n)), np.zeros((m, 2)), np.zeros((2, n))) == (0.0, 0.0)


def test_one_key_gives_one_certificate() -> None:
    A = np.random.default_rng(0).standard_normal((60, 40), dtype=np.float32)
    U, Vh = A[:, :2], A[:2] / 10
    assert certify(A, U, Vh, key=3) == certify(A, U, Vh, key=3)
    assert certify(A, U, Vh, key=mx.random.key(3)) == certify(A, U, Vh, key=mx.random.key(3))
    several = {certify(A, U, Vh, key=key).spectral_error for key in range(5)}
    assert len(several) > 1
    assert max(several) <= 1.1 * min(several)


def test_certificate_refuses_factors_of_another_matrix() -> None:
    with pytest.raises(
        ValueError, match=r"shapes \(2, r\) and \(r, 3\) .* got \(2, 1\) and \(2, 3"
    ):
        certify(np.ones((2, 3)), np.ones((2, 1)), np.ones((2, 3)))


@pytest.mark.parametrize(("side", "name"), [(0, "A"), (1, "U"), (2, "Vh")])
def test_certificate_refuses_what_is_not_finite_by_name(side: int, name: str) -> None:
    arguments = [np.ones((2, 3)), np.ones((2, 1)), np.ones((1, 3))]
    arguments[side][0, 0] = np.nan
    with pytest.raises(ValueError, match=rf"`{name}` must be finite .* first at \(0, 0\)"):
        certify(*arguments)
    with pytest.raises(TypeError, match=rf"`{name}` must hold floating-point numbers, got int"):
        certify(*(np.ones(M.shape, int) if i == side else M for i, M in enumerate(arguments)))


def test_certificate_never_holds_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK", 2**13)
    rng = np.random.default_rng(0)
    U, Vh = (rng.standard_normal(s, dtype=np.float32) for s in ((700, 4), (4, 800)))
    A = U @ Vh + rng.standard_normal((700, 1)).astype(np.float32)
    tracemalloc.start()
    certify(A, U, Vh)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < A.nbytes / 2
