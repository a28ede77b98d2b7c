"""The output basis: complete under any Gram, optimal under the one it was made for."""

import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import linalg
from plastic_core.linalg import Float32, Float64, arrays, reflectors
from plastic_core.loss.weighted import output_basis, weighted_spectrum
from plastic_core.testing import (
    SCALES,
    Sample,
    anything,
    assert_orthonormal,
    matrix_from_spectrum,
    repeatable,
    tolerance,
)


class Problem(NamedTuple):
    """A matrix, its spectrum, an input Gram and the square root of that Gram."""

    A: Float32
    s: Float64
    R: Float64
    root: Float64


@st.composite
def grams(draw: st.DrawFn, n: int) -> tuple[Float64, Float64]:
    """A Gram of known square root: of full rank, of few inputs, zero; any magnitude."""
    rank = draw(st.sampled_from([0, 1, max(1, n // 2), n]))
    values = np.geomspace(1.0, draw(st.sampled_from([1.0, 1e-4])), rank) if rank else np.zeros(0)
    values = values * draw(st.sampled_from(SCALES))
    V, _ = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 99))).standard_normal((n, n)))
    V = V[:, :rank]
    return (V * values) @ V.T, (V * np.sqrt(values)) @ V.T


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    A, s = draw(anything)
    R, root = draw(grams(A.shape[1]))
    return Problem(A, s, R, root)


def weighted_limit(A: Float32, s: Float64, root: Float64) -> float:
    return tolerance(float(s[0] * np.linalg.norm(root, 2)), A.shape)


@repeatable
@given(problems())
def test_basis_is_orthonormal_and_complete_whatever_the_gram(problem: Problem) -> None:
    A, s, R, _ = problem
    for gram in (None, R):
        U = output_basis(A, gram=gram).U
        assert U.shape == (len(A), min(A.shape))
        assert_orthonormal(U)
        U = U.astype(np.float64)
        assert np.linalg.norm(U @ (U.T @ A) - A, 2) <= tolerance(s, A.shape)


@repeatable
@given(problems())
def test_singular_values_are_those_of_the_weighted_matrix(problem: Problem) -> None:
    A, s, R, root = problem
    exact = np.linalg.svd(A @ root, compute_uv=False)
    for values in (output_basis(A, gram=R).singular_values, weighted_spectrum(A, gram=R)):
        assert values.shape == exact.shape
        assert (np.diff(values) <= 0).all()
        assert np.abs(values - exact).max() <= weighted_limit(A, s, root)


@repeatable
@given(anything)
def test_without_a_gram_the_spectrum_is_that_of_the_matrix(sample: Sample) -> None:
    A, s = sample
    for values in (output_basis(A).singular_values, weighted_spectrum(A)):
        assert np.abs(values - s).max() <= tolerance(s, A.shape)


@repeatable
@given(problems())
def test_truncated_weighted_error_is_the_tail_of_the_weighted_spectrum(problem: Problem) -> None:
    A, s, R, root = problem
    tail = np.linalg.svd(A @ root, compute_uv=False)
    U = output_basis(A, gram=R).U.astype(np.float64)
    for r in range(U.shape[1] + 1):
        error = np.linalg.norm((A - U[:, :r] @ (U[:, :r].T @ A)) @ root)
        assert abs(error - np.linalg.norm(tail[r:])) <= weighted_limit(A, s, root)


@repeatable
@given(problems(), st.integers(0, 99))
def test_no_rival_of_the_same_rank_is_better_under_the_gram(problem: Problem, seed: int) -> None:
    A, s, R, root = problem
    basis, rng = output_basis(A, gram=R).U.astype(np.float64), np.random.default_rng(seed)
    plain = np.linalg.svd(A.astype(np.float64), full_matrices=False)[0]
    for r in {1, max(1, min(A.shape) // 2)}:
        U = basis[:, :r]
        rivals = [plain[:, :r], rng.standard_normal(U.shape)]
        rivals += [U + size * rng.standard_normal(U.shape) for size in (1e-3, 0.1)]
        best = np.linalg.norm((A - U @ (U.T @ A)) @ root)
        for rival in rivals:
            Q, _ = np.linalg.qr(rival)
            error = np.linalg.norm((A - Q @ (Q.T @ A)) @ root)
            assert best <= error + weighted_limit(A, s, root)


def test_the_gram_matters() -> None:
    A, R = np.diag([3.0, 2.0]), np.diag([1.0, 4.0])
    weighted = output_basis(A, gram=R)
    assert weighted.singular_values == pytest.approx([4.0, 3.0])
    assert np.abs(weighted.U).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert np.abs(output_basis(A).U).tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("inputs", [0, 1, 5])
def test_directions_no_input_sees_are_in_the_order_of_their_energy(
    shape: tuple[int, int], inputs: int
) -> None:
    k, rng = min(shape), np.random.default_rng(5)
    A = matrix_from_spectrum(np.geomspace(1, 1e-3, k), *shape, seed=4).astype(np.float32)
    basis = output_basis(A, gram=linalg.gram(rng.standard_normal((inputs, shape[1]))))
    assert (basis.singular_values > 0).tolist() == [i < inputs for i in range(k)]
    U = basis.U.astype(np.float64)
    seen = U[:, :inputs]
    left = np.linalg.svd(A - seen @ (seen.T @ A), compute_uv=False)
    for r in range(inputs, k + 1):
        error = np.linalg.norm(A - U[:, :r] @ (U[:, :r].T @ A))
        assert error == pytest.approx(
            np.linalg.norm(left[r - inputs :]), abs=tolerance(1.0, A.shape)
        )


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 3), (3, 7)])
@pytest.mark.parametrize("entry", [0.0, 1e30, 1e-30, 1e-40])
def test_constant_matrices_of_any_size_and_magnitude(shape: tuple[int, int], entry: float) -> None:
    A = np.full(shape, entry, dtype=np.float32)
    R = np.eye(shape[1], dtype=np.float32) * 4
    U, values = output_basis(A, gram=R)
    norm = float(A[0, 0]) * np.sqrt(A.size)
    assert_orthonormal(U)
    assert values[0] == pytest.approx(2 * norm, rel=tolerance(1.0, shape))
    U = U.astype(np.float64)
    assert np.abs(U @ (U.T @ A) - A).max() <= tolerance(norm, shape)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_mlx_matrices_and_grams_are_read_as_they_are(dtype: mx.Dtype) -> None:
    A = mx.array([[1.0, 2.0, 0.5], [0.0, -1.0, 4.0]])
    R = mx.diag(mx.array([1.0, 2.0, 0.25]))
    expected = output_basis(np.asarray(A), gram=np.asarray(R))
    basis = output_basis(A.astype(dtype), gram=R.astype(dtype))
    assert basis.U.tobytes() == expected.U.tobytes()
    assert basis.singular_values.tobytes() == expected.singular_values.tobytes()


@pytest.mark.parametrize("shape", [(10, 40), (40, 10)])
def test_block_size_does_not_change_the_result(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    A = matrix_from_spectrum(np.geomspace(1, 0.1, 10), *shape, seed=6).astype(np.float32)
    R = linalg.gram(np.random.default_rng(7).standard_normal((4, shape[1])))
    whole = output_basis(A, gram=R)
    monkeypatch.setattr(arrays, "BLOCK", 100)
    blocked = output_basis(A, gram=R)
    limit = tolerance(float(np.linalg.norm(R, 2)) ** 0.5, shape)
    assert np.abs(whole.singular_values - blocked.singular_values).max() <= limit
    signs = np.sign((whole.U * blocked.U).sum(axis=0))
    assert np.abs(whole.U - blocked.U * signs).max() <= 10 * tolerance(1.0, shape)


@pytest.mark.parametrize("shape", [(30, 2000), (2000, 30)])
@pytest.mark.parametrize("weighted", [True, False])
def test_nothing_of_the_size_of_the_matrix_is_made_in_double_precision(
    shape: tuple[int, int], weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "BLOCK", 2**11)
    monkeypatch.setattr(reflectors, "PANEL", 4)
    A = np.random.default_rng(8).standard_normal(shape, dtype=np.float32)
    R = np.eye(shape[1], dtype=np.float32) if weighted else None
    tracemalloc.start()
    basis = output_basis(A, gram=R)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = A.nbytes if shape[0] > shape[1] else 0
    panels = 3 * 8 * len(A) * reflectors.PANEL
    working = 6 * 30 * 30 * 8 + 4 * 8 * arrays.BLOCK
    assert peak < basis.U.nbytes + held + panels + working


@pytest.mark.parametrize("decompose", [output_basis, weighted_spectrum])
def test_a_gram_that_does_not_fit_is_refused(decompose: Callable[..., Any]) -> None:
    A = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=r"`gram` must have shape \(3, 3\) .* got \(2, 2\)"):
        decompose(A, gram=np.eye(2))
    with pytest.raises(ValueError, match=r"`gram` must be finite .* the first at \(2, 2\)"):
        decompose(A, gram=np.diag([1.0, 1.0, np.inf]))
    with pytest.raises(ValueError, match="its diagonal has negative entries"):
        decompose(A, gram=np.diag([1.0, -1.0, 1.0]))
    with pytest.raises(TypeError, match="`gram` must hold floating-point numbers, got int64"):
        decompose(A, gram=np.eye(3, dtype=np.int64))


@pytest.mark.parametrize("decompose", [output_basis, weighted_spectrum])
def test_a_matrix_with_nan_is_refused(decompose: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"`A` must be finite"):
        decompose(np.array([[1.0, np.nan]]))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_matrix_has_an_empty_basis(shape: tuple[int, int]) -> None:
    basis = output_basis(np.zeros(shape, np.float32))
    assert (basis.U.shape, basis.singular_values.shape) == ((shape[0], 0), (0,))
