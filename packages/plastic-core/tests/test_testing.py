"""The strategies draw what they say, and the tolerances can be failed."""

import subprocess
import sys
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st
from plastic_core.linalg import Float64
from plastic_core.testing import (
    Sample,
    assert_orthonormal,
    bits,
    matrices,
    matrix_from_spectrum,
    repeatable,
    spectra,
    tolerance,
)


@repeatable
@given(spectra(min_size=2, max_size=5, scales=(2.0**100,)))
def test_spectra_are_sorted_scaled_and_within_their_size(s: Float64) -> None:
    assert s.dtype == np.float64
    assert 2 <= len(s) <= 5
    assert (np.diff(s) <= 0).all()
    assert (s >= 0).all()
    assert s[0] <= 2.0**100


@pytest.mark.parametrize(
    "kind",
    [
        lambda s: s[0] == 0,
        lambda s: len(s) > 2 and s[0] == s[-1] > 0,
        lambda s: len(s) > 2 and s[0] == s[1] > s[-1] > 0,
        lambda s: s[-1] > 0 and s[0] > 1e4 * s[-1],
    ],
    ids=["zero", "flat", "tied", "steep"],
)
def test_every_kind_of_spectrum_is_drawn(kind: Callable[[Float64], bool]) -> None:
    assert kind(find(spectra(), kind))


@repeatable
@given(matrices(max_side=9))
def test_matrices_have_the_spectrum_they_come_with(sample: Sample) -> None:
    A, s = sample
    assert A.dtype == np.float32
    assert max(A.shape) <= 9
    assert s.shape == (min(A.shape),)
    exact = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    assert np.abs(exact - s).max() <= tolerance(s, A.shape)


@repeatable
@given(st.integers(3, 9), st.integers(3, 9), st.integers(0, 99))
def test_a_short_spectrum_is_completed_with_zeros(m: int, n: int, seed: int) -> None:
    A = matrix_from_spectrum(np.array([2.0, 1.0]), m, n, seed)
    exact = np.linalg.svd(A, compute_uv=False)
    expected = [2.0, 1.0] + [0.0] * (min(m, n) - 2)
    assert np.abs(exact - expected).max() <= tolerance(2.0, A.shape, np.float64)


def test_the_same_seed_gives_the_same_matrix() -> None:
    first, second, other = (matrix_from_spectrum(np.ones(2), 3, 4, seed) for seed in (1, 1, 2))
    assert bits(first) == bits(second) != bits(other)


def test_tolerance_by_hand() -> None:
    eps = float(np.finfo(np.float32).eps)
    assert tolerance(3.0, (2, 5)) == 10 * 5 * eps * 3.0
    assert tolerance(np.array([3.0, 1.0]), (2, 5)) == tolerance(3.0, (2, 5))
    assert tolerance(mx.diag(mx.array([3.0, 1.0])), (2, 5)) == pytest.approx(
        tolerance(3.0, (2, 5)), rel=1e-12
    )
    assert tolerance(3.0, (2, 5), np.float64) == 10 * 5 * np.finfo(np.float64).eps * 3.0


def test_columns_that_are_not_orthonormal_are_found() -> None:
    assert_orthonormal(mx.eye(3)[:, :2])
    with pytest.raises(AssertionError, match="differs from I"):
        assert_orthonormal(np.array([[1.0, 1e-3], [0.0, 1.0]]))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_bits_tell_zeros_apart_and_find_nan_equal_to_itself(dtype: mx.Dtype) -> None:
    a = mx.array([0.0, float("nan")]).astype(dtype)
    assert bits(a) == bits(mx.array([0.0, float("nan")]).astype(dtype))
    assert bits(a) != bits(mx.array([-0.0, float("nan")]).astype(dtype))
    assert bits(mx.array(np.ones(2, np.float32))) == bits(np.ones(2, np.float32))


def test_the_package_itself_does_not_need_hypothesis() -> None:
    code = "import plastic_core, sys; sys.exit('hypothesis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
