"""An operator is its matrix: the same rows, products and norms, block by block."""

import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_core.factors.factors import Factors
from plastic_core.factors.lowrank import factorized_lowrank
from plastic_core.factors.operators import (
    Difference,
    LowRank,
    Operator,
    Quantized,
    Residual,
    as_operator,
    difference,
)
from plastic_core.factors.quantize import dequantize_factors, quantize_factors
from plastic_core.linalg import Float64, arrays
from plastic_core.testing import EPS, bits, repeatable, tolerance

KINDS = ("dense", "bfloat16", "factored", "packed", "linear", "quantised")
AFFINE = [("affine", bits, size) for bits in (2, 3, 4, 5, 6, 8) for size in (32, 64, 128)]
MODES = [*AFFINE, ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
kinds, seeds = st.sampled_from(KINDS), st.integers(0, 2**16)
rows_of, columns_of = st.integers(1, 12), st.sampled_from([32, 64])


class Drawn(NamedTuple):
    """Something that stands for a matrix.

    Attributes:
        given: What is handed in.
        dense: The matrix, float64.
        terms: Frobenius norm of what its entries sum, signs dropped: what rounding goes by.
    """

    given: Any
    dense: Float64
    terms: float


def operand(kind: str, m: int, n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, n), dtype=np.float32)
    if kind in ("factored", "packed"):
        r = int(rng.integers(0, min(m, n) + 1))
        factors = Factors(*(mx.array(F) for F in (A[:, :r], A[0, :r], A[:r])))
        if kind == "factored":
            return Drawn(factors, *products(factors))
        packed = quantize_factors(*factors, bits=4, group_size=32)
        return Drawn(packed, *products(dequantize_factors(packed)))
    if kind == "bfloat16":
        rounded = mx.array(A).astype(mx.bfloat16)
        return entries(rounded, np.asarray(rounded.astype(mx.float32)))
    if kind == "dense":
        return entries(A, A)
    layer = nn.Linear(n, m, bias=False)
    layer.weight = mx.array(A)
    if kind == "linear":
        return entries(layer, A)
    quantised = nn.QuantizedLinear.from_linear(layer, group_size=32, bits=4)
    return entries(quantised, dequantised(quantised))


def entries(given_: Any, dense: NDArray[Any]) -> Drawn:
    return Drawn(given_, dense.astype(np.float64), float(np.linalg.norm(dense)))


def products(factors: Factors) -> tuple[Float64, float]:
    U, S, Vh = (np.asarray(F, dtype=np.float64) for F in factors)
    return (U * S) @ Vh, float(np.linalg.norm(np.abs(U * S) @ np.abs(Vh)))


def dequantised(layer: nn.QuantizedLinear) -> Float64:
    dense = mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
        stream=mx.cpu,
    )
    return np.asarray(dense.astype(mx.float32)).astype(np.float64)


def assert_is(operator: Operator, dense: Float64, terms: float, seed: int) -> None:
    """Rows, products and norms of ``operator`` are those of ``dense``."""
    (m, n), rng = dense.shape, np.random.default_rng(seed)
    rounding, norm = tolerance(terms, dense.shape), float(np.linalg.norm(dense))
    assert operator.shape == (m, n)
    assert abs(operator.norm() - norm) <= 1e-3 * norm + EPS * rounding
    part = slice(m // 3, m // 3 + 1 + m // 2)
    x, X, Y = (rng.standard_normal(s) for s in (n, (n, 3), (m, 2)))
    for dtype in (np.float32, np.float64):
        rows = operator.rows(part, dtype)
        assert rows.dtype == dtype
        assert np.linalg.norm(rows - dense[part]) <= rounding
        z = operator.normal_times(x, 1 / (norm or 1.0), dtype)
        assert z.dtype == np.float64
        limit = (2 * terms + rounding) * rounding * np.linalg.norm(x)
        assert np.linalg.norm(z - dense.T @ (dense @ x)) <= limit
    for product, M, Z in (
        (operator.times, dense, X.astype(np.float32)),
        (operator.transposed_times, dense.T, Y.astype(np.float32)),
    ):
        assert np.linalg.norm(product(Z) - M @ Z) <= rounding * np.linalg.norm(Z)


@pytest.mark.parametrize("block", [arrays.BLOCK, 70])
@repeatable
@given(kind=kinds, m=rows_of, n=columns_of, seed=seeds)
def test_an_operator_is_what_it_stands_for(
    block: int, kind: str, m: int, n: int, seed: int
) -> None:
    drawn = operand(kind, m, n, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "BLOCK", block)
        assert_is(as_operator(drawn.given), drawn.dense, drawn.terms, seed)


@pytest.mark.parametrize("block", [arrays.BLOCK, 70])
@repeatable
@given(left=kinds, right=kinds, m=rows_of, n=columns_of, seed=seeds)
def test_a_difference_is_the_dense_difference(
    block: int, left: str, right: str, m: int, n: int, seed: int
) -> None:
    A, B = operand(left, m, n, seed), operand(right, m, n, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "BLOCK", block)
        minus = difference(A.given, B.given)
        assert_is(minus, A.dense - B.dense, A.terms + B.terms, seed)


@pytest.mark.parametrize(
    ("left", "right", "kind"),
    [
        ("dense", "quantised", Difference),
        ("factored", "dense", Difference),
        ("quantised", "factored", Residual),
        ("dense", "packed", Residual),
        ("factored", "packed", LowRank),
    ],
)
def test_a_difference_of_factored_matrices_stays_factored(
    left: str, right: str, kind: type
) -> None:
    A, B = (operand(which, 6, 32, seed=3).given for which in (left, right))
    assert type(difference(A, B)) is kind


@repeatable
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.floats(-7, 0), seeds)
def test_the_norm_is_exact_whatever_cancels(
    m: int, n: int, r: int, exponent: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    U, Vh = (rng.standard_normal(s, dtype=np.float32) for s in ((m, r), (r, n)))
    E = (10**exponent * rng.standard_normal((m, n))).astype(np.float32)
    A = U @ Vh + E
    residual = Residual(as_operator(A), U, Vh)
    exact = np.linalg.norm(A - U.astype(np.float64) @ Vh)
    assert abs(residual.norm() - exact) <= 1e-3 * exact
    # Above `roundoff` the dtype that it calls precise enough is.
    dtype = residual.precision(float(exact))
    assert abs(residual.squared_norm(dtype) - exact**2) <= 2.1e-3 * exact**2


@repeatable
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 8), st.floats(-5, 0), seeds)
def test_the_norm_of_close_factored_matrices_is_exact(
    m: int, n: int, r: int, exponent: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    U, Vh = (rng.standard_normal(s, dtype=np.float32) for s in ((m, r), (r, n)))
    near = (U * (1 + 10**exponent * rng.standard_normal(U.shape))).astype(np.float32)
    both = LowRank(U, Vh).plus(LowRank(near, Vh), sign=-1.0)
    exact = np.linalg.norm(U.astype(np.float64) @ Vh - near.astype(np.float64) @ Vh)
    # Squares lose eps of the terms, which is 1e-6 of them at 1e-5 and grows as the inverse square.
    assert abs(both.norm() - exact) <= 1e-3 * exact
    assert both.max_rank == min(m, n, 2 * r)


def test_the_sign_of_a_sum_of_factors() -> None:
    A, B = LowRank(np.eye(3), np.eye(3)), LowRank(np.ones((3, 1)), np.ones((1, 3)))
    assert A.plus(B).rows(slice(None)).tolist() == (np.eye(3) + 1).tolist()
    assert A.plus(B, sign=-1.0).rows(slice(None)).tolist() == (np.eye(3) - 1).tolist()


@pytest.mark.parametrize(("mode", "width", "size"), MODES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_quantised_rows_are_what_mlx_dequantises(
    mode: str, width: int, size: int, dtype: mx.Dtype
) -> None:
    A = np.random.default_rng(width + size).standard_normal((7, 256), dtype=np.float32)
    dense = nn.Linear(256, 7, bias=False)
    dense.weight = mx.array(A).astype(dtype)
    layer = nn.QuantizedLinear.from_linear(dense, group_size=size, bits=width, mode=mode)
    operator, exact = as_operator(layer), dequantised(layer)
    assert isinstance(operator, Quantized)
    assert operator.shape == (7, 256)
    assert bits(operator.rows(slice(None), np.float64)) == bits(exact)
    assert bits(operator.rows(slice(2, 5))) == bits(exact[2:5].astype(np.float32))


def test_a_dense_operator_shares_the_callers_memory_and_never_writes() -> None:
    A = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
    A.setflags(write=False)
    operator = as_operator(A)
    assert np.shares_memory(operator.rows(slice(None)), A)
    assert as_operator(operator) is operator
    assert_is(operator, A.astype(np.float64), float(np.linalg.norm(A)), seed=1)


def test_float64_of_mlx_and_numpy_is_read() -> None:
    A = np.arange(6.0).reshape(2, 3)
    for given_ in (A, mx.array(A.tolist()).astype(mx.float64, stream=mx.cpu)):
        assert as_operator(given_).rows(slice(None)).tolist() == A.tolist()


def test_matrices_of_two_shapes_are_not_subtracted() -> None:
    with pytest.raises(ValueError, match=r"one shape to be subtracted, got \(3, 4\) and \(4, 3\)"):
        difference(np.ones((3, 4)), np.ones((4, 3)))


@pytest.mark.parametrize(("side", "name"), [(0, "A"), (1, "B")])
def test_a_difference_names_the_side_that_is_not_finite(side: int, name: str) -> None:
    sides = [np.ones((3, 4)), np.ones((3, 4))]
    sides[side][2, 1] = np.inf
    with pytest.raises(ValueError, match=rf"`{name}` must be finite .* 1 of its 12 .* \(2, 1\)"):
        difference(*sides)
    with pytest.raises(TypeError, match=rf"`{name}` must hold floating-point numbers, got int64"):
        difference(*(M if i != side else np.ones((3, 4), int) for i, M in enumerate(sides)))


def test_factors_that_are_not_finite_are_refused() -> None:
    wrong = Factors(mx.ones((3, 2)), mx.array([1.0, float("nan")]), mx.ones((2, 4)))
    with pytest.raises(ValueError, match=r"`U` must be finite .* 3 of its 6 .* first at \(0, 1\)"):
        difference(np.ones((3, 4)), wrong)


def test_a_quantised_layer_that_is_not_finite_is_refused_at_its_rows() -> None:
    layer = operand("quantised", 5, 64, seed=0).given
    scales = np.array(layer.scales)
    scales[3, 1] = np.nan
    layer.scales = mx.array(scales)
    with pytest.raises(ValueError, match=r"32 of its 320 entries are not, the first at \(3, 32\)"):
        factorized_lowrank(layer, 2)


def test_a_difference_beyond_float32_has_an_infinite_norm_and_warns_of_nothing() -> None:
    A = np.full((2, 2), 3e38, np.float32)
    assert difference(A, -A).norm() == float("inf")


@pytest.mark.parametrize("product", ["norm", "times", "transposed_times", "normal_times"])
def test_no_product_with_a_difference_forms_it(
    product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "BLOCK", 2**13)
    rng = np.random.default_rng(0)
    A = rng.standard_normal((700, 800), dtype=np.float32)
    factors = [rng.standard_normal(s, dtype=np.float32) for s in ((700, 4), (4, 800))]
    operator = difference(A, Factors(mx.array(factors[0]), mx.ones(4), mx.array(factors[1])))
    calls: dict[str, Callable[[], object]] = {
        "norm": operator.norm,
        "times": lambda: operator.times(np.ones((800, 8), np.float32)),
        "transposed_times": lambda: operator.transposed_times(np.ones((700, 8), np.float32)),
        "normal_times": lambda: operator.normal_times(np.ones(800), 1.0),
    }
    tracemalloc.start()
    calls[product]()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < A.nbytes / 4


def test_a_correction_of_a_quantised_weight_is_the_best_of_its_rank() -> None:
    W = np.random.default_rng(1).standard_normal((64, 64), dtype=np.float32)
    quantised = operand("quantised", 64, 64, seed=0)
    correction = factorized_lowrank(difference(W, quantised.given), rank=16)
    left = W - quantised.dense
    error = np.linalg.norm(left - products(correction)[0])
    least = np.linalg.norm(np.linalg.svd(left, compute_uv=False)[16:])
    assert error <= 1.01 * least
