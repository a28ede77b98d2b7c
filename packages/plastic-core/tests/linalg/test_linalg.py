"""Factorisations: backward stable, thin, finite in and out, whatever the magnitude."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import linalg
from plastic_core.linalg import Matrix, arrays, lapack, products, reflectors, thin
from plastic_core.testing import (
    Sample,
    anything,
    assert_orthonormal,
    bits,
    matrix_from_spectrum,
    repeatable,
    tolerance,
)

Function = Callable[[Any], Any]
FACTORISATIONS = (
    linalg.thin_svd,
    linalg.thin_singular_values,
    linalg.qr,
    thin.householder,
    linalg.gram,
    linalg.frobenius_norm,
    linalg.spectral_norm,
)


def spectral_error(A: Matrix, B: Matrix) -> float:
    return float(np.linalg.norm(np.asarray(A, dtype=np.float64) - B, 2))


@repeatable
@given(anything)
def test_thin_svd_reconstructs_with_orthonormal_factors(sample: Sample) -> None:
    A, s = sample
    U, S, Vh = linalg.thin_svd(A)
    (m, n), k = A.shape, min(A.shape)
    assert (U.shape, S.shape, Vh.shape) == ((m, k), (k,), (k, n))
    assert spectral_error((U.astype(np.float64) * S) @ Vh, A) <= tolerance(s, A.shape)
    assert_orthonormal(U)
    assert_orthonormal(Vh.T)
    assert (S >= 0).all()
    assert (np.diff(S) <= 0).all()


@repeatable
@given(anything)
def test_singular_values_are_those_the_matrix_was_built_from(sample: Sample) -> None:
    A, s = sample
    assert np.abs(linalg.thin_singular_values(A) - s).max() <= tolerance(s, A.shape)


@repeatable
@given(anything)
def test_qr_is_thin_triangular_and_reconstructs(sample: Sample) -> None:
    A, s = sample
    Q, T = linalg.qr(A)
    assert Q.shape[1] == T.shape[0] == min(A.shape)
    assert_orthonormal(Q)
    assert bits(np.triu(T)) == bits(T)
    assert spectral_error(Q.astype(np.float64) @ T, A) <= tolerance(s, A.shape)


@pytest.mark.parametrize("panel", [1, 3, 128])
@repeatable
@given(sample=anything)
def test_reflectors_make_the_same_qr_whatever_the_panel(panel: int, sample: Sample) -> None:
    A, s = sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reflectors, "PANEL", panel)
        factored = thin.householder(A)
        k = min(A.shape)
        Q = factored.times(np.eye(k, dtype=np.float32))
        halves = factored.times(np.eye(k, dtype=np.float32)[:, : k // 2 + 1])
    assert_orthonormal(Q)
    assert bits(np.triu(factored.T)) == bits(factored.T)
    assert spectral_error(Q.astype(np.float64) @ factored.T, A) <= tolerance(s, A.shape)
    assert np.abs(Q[:, : k // 2 + 1] - halves).max() <= tolerance(1.0, A.shape)


@repeatable
@given(anything)
def test_eigh_reconstructs_to_double_precision_largest_first(sample: Sample) -> None:
    A, s = sample
    H = linalg.gram(A)
    values, V = linalg.eigh(H)
    limit = tolerance(float(s[0]) ** 2, H.shape, np.float64)
    assert spectral_error((V * values) @ V.T, H) <= 2 * limit
    assert (np.diff(values) <= 0).all()
    assert np.abs(lapack.eigvalsh(H) - values).max() <= limit


@repeatable
@given(anything)
def test_frobenius_norm_is_the_root_of_the_energy(sample: Sample) -> None:
    A, s = sample
    assert abs(linalg.frobenius_norm(A) - np.linalg.norm(s)) <= tolerance(s, A.shape)


@repeatable
@given(anything, st.integers(0, 9))
def test_spectral_norm_is_the_largest_singular_value_from_below(sample: Sample, seed: int) -> None:
    A, s = sample
    norm = linalg.spectral_norm(A, key=seed)
    assert (1 - 1e-2) * s[0] - tolerance(s, A.shape) <= norm <= s[0] + tolerance(s, A.shape)


def test_spectral_norm_finds_the_edge_of_a_flat_spectrum() -> None:
    A = np.random.default_rng(3).standard_normal((150, 200)).astype(np.float32)
    exact = np.linalg.norm(A.astype(np.float64), 2)
    assert (1 - 1e-2) * exact <= linalg.spectral_norm(A) <= exact * (1 + 1e-12)
    assert (1 - 1e-3) * exact <= linalg.spectral_norm(A, tolerance=1e-3)


def test_spectral_norm_keeps_digits_that_squaring_in_float32_would_lose() -> None:
    A = np.diag([1e30, 1.0, 1e-30])
    assert linalg.spectral_norm(A) == pytest.approx(1e30, rel=1e-6)
    assert linalg.spectral_norm(np.zeros((3, 5), np.float32)) == 0.0


@pytest.mark.parametrize("entry", [1e30, 1e-30, 1e-40])
def test_norms_neither_overflow_nor_underflow(entry: float) -> None:
    A = np.full((4, 9), entry, dtype=np.float32)
    expected = pytest.approx(6 * float(A[0, 0]), rel=1e-6)
    assert linalg.frobenius_norm(A) == expected
    assert linalg.spectral_norm(A) == expected


def test_gram_keeps_what_float32_sums_would_drop() -> None:
    X = np.full((4096, 1), 1e-4, dtype=np.float32)
    X[0] = 1.0
    expected = 1.0 + 4095 * float(X[1, 0]) ** 2
    assert linalg.gram(X)[0, 0] == pytest.approx(expected, rel=1e-12)


def test_block_size_does_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    A = matrix_from_spectrum(np.linspace(1, 0.1, 7), 7, 33, seed=0).astype(np.float32)
    x = np.random.default_rng(0).standard_normal(33)

    def calculated() -> list[Any]:
        return [linalg.gram(A), linalg.frobenius_norm(A), products.multiply(A, x)]

    whole = calculated()
    monkeypatch.setattr(arrays, "BLOCK", 50)
    assert len(list(linalg.blocks(*A.shape))) == 7
    for one, many in zip(whole, calculated(), strict=True):
        assert np.abs(one - many).max() <= tolerance(1.0, A.shape, np.float64)


@repeatable
@given(st.integers(0, 40), st.integers(0, 2**23))
def test_blocks_cover_every_index_once(count: int, width: int) -> None:
    slices = list(linalg.blocks(count, width))
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(count))
    assert all((s.stop - s.start) * width <= arrays.BLOCK or s.stop - s.start == 1 for s in slices)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_as_matrix_reads_every_float_of_mlx_exactly(dtype: mx.Dtype) -> None:
    A = mx.array([[1.5, -(2.0**-14), 0.0], [-0.0, 3.0, 2.0**14]]).astype(dtype)
    assert linalg.as_matrix(A).tolist() == A.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_as_matrix_reads_every_float_of_numpy_and_every_layout(dtype: type) -> None:
    A: Matrix = np.arange(24, dtype=dtype).reshape(4, 6)[::-2, 1::2].T
    result = linalg.as_matrix(A)
    assert result.dtype == np.float32
    assert result.tolist() == A.tolist()


def test_as_matrix_copies_nothing_that_is_float32_already() -> None:
    A = np.ones((3, 4), dtype=np.float32)
    assert np.shares_memory(linalg.as_matrix(A), A)


@pytest.mark.parametrize("factorise", FACTORISATIONS)
def test_factorisations_leave_their_argument_alone(factorise: Function) -> None:
    A = matrix_from_spectrum(np.array([2.0, 1.0, 0.5]), 5, 3, seed=1).astype(np.float32)
    before = bits(A)
    factorise(A)
    assert bits(A) == before


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("factorise", FACTORISATIONS)
def test_a_number_that_is_not_finite_is_refused_with_count_and_place(
    factorise: Function, wrong: float
) -> None:
    A = np.ones((4, 5), dtype=np.float32)
    A[1, 3] = A[2, 0] = wrong
    with pytest.raises(ValueError, match=r"2 of its 20 entries are not, the first at \(1, 3\)"):
        factorise(A)


@pytest.mark.parametrize("solve", [linalg.eigh, lapack.eigvalsh])
def test_eigenvalues_of_a_matrix_with_nan_are_refused(solve: Function) -> None:
    with pytest.raises(ValueError, match=r"1 of its 4 entries are not, the first at \(0, 1\)"):
        solve(np.array([[1.0, np.nan], [2.0, 1.0]]))


def test_float64_beyond_float32_is_refused_not_turned_into_infinity() -> None:
    with pytest.raises(ValueError, match=r"`A` must be finite in float32, but 1 of its 2 entries"):
        linalg.as_matrix(np.array([[1.0, 1e300]]))


def test_singular_values_beyond_float32_are_refused() -> None:
    for factorise in (linalg.thin_svd, linalg.qr, linalg.thin_singular_values):
        with pytest.raises(ValueError, match=r"overflows float32\. Scale the matrix down first\."):
            factorise(np.full((4, 4), 3e38, dtype=np.float32))


def test_qr_does_not_widen_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflectors, "PANEL", 8)
    A = np.random.default_rng(0).standard_normal((1000, 90), dtype=np.float32)
    tracemalloc.start()
    linalg.qr(A)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * A.nbytes  # Q, the reflectors and the small factors


@pytest.mark.parametrize("A", [np.ones((2, 2), np.int32), mx.ones((2, 2), mx.uint32)])
def test_integers_are_refused_by_type(A: Matrix) -> None:
    with pytest.raises(TypeError, match=r"`weight` must hold floating-point numbers, got u?int32"):
        linalg.as_matrix(A, "weight")


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_what_is_not_a_matrix_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`A` must be a matrix, got an array of shape \("):
        linalg.as_matrix(np.ones(shape))


def test_a_vector_is_asked_for_by_name() -> None:
    assert linalg.as_vector(mx.array([1.0, 2.0])).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"`S` must be a vector, got an array of shape \(2, 2\)"):
        linalg.as_vector(np.ones((2, 2)), "S")


@pytest.mark.parametrize("n", [1, 255, 256, 257, 600])
def test_cholesky_factors_are_those_of_lapack_and_need_no_other_memory(n: int) -> None:
    X = np.random.default_rng(n).standard_normal((2 * n, n))
    A = X.T @ X + n * np.eye(n)
    before, expected = A.copy(), np.linalg.cholesky(A)
    L = linalg.cholesky(A)
    assert (before == A).all()
    limit = 10 * n * np.finfo(np.float64).eps * np.abs(expected).max()
    assert np.abs(L - expected).max() <= limit
    assert not np.triu(L, 1).any()
    backwards = A[::-1, ::-1]
    reversed_too = linalg.cholesky(backwards, overwrite=True)
    assert np.shares_memory(reversed_too, A)
    product = reversed_too @ reversed_too.T
    assert np.abs(product - before[::-1, ::-1]).max() <= limit * np.abs(expected).max()


def test_cholesky_is_the_same_for_any_number_of_threads_and_says_which_rows_are_not() -> None:
    X = np.random.default_rng(0).standard_normal((900, 900))
    A = X @ X.T + 900 * np.eye(900)
    found = set[bytes]()
    for count in (1, 2, 4):
        with linalg.using_workers(count):
            found.add(linalg.cholesky(A).tobytes())
    assert len(found) == 1
    A[700, 700] = -1
    with pytest.raises(ValueError, match="positive definite, but its leading 768 rows are not"):
        linalg.cholesky(A)
