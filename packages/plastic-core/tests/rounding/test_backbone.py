"""Backbones: MLX's own numbers and packing; with a Gram, less error than plain rounding."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import difference, linalg
from plastic_core.factors.quantize import BITS, GROUP_SIZES
from plastic_core.linalg import Float32, Float64, Matrix
from plastic_core.loss.feedback import feedback_of
from plastic_core.loss.gram_root import GramRoot
from plastic_core.loss.loss import predicted_cost
from plastic_core.rounding.backbone import Backbone, error_feedback, round_to_nearest
from plastic_core.rounding.levels import nearest_errors
from plastic_core.rounding.one_sided import descend, round_with_feedback
from plastic_core.rounding.rounded import Grid, Rounded
from plastic_core.testing import EPS, repeatable, tolerance
from plastic_core.testing import bits as bytes_of

DTYPES = (mx.bfloat16, mx.float16, mx.float32)
any_bits, any_group = st.sampled_from(BITS), st.sampled_from(GROUP_SIZES)
seeds = st.integers(0, 99)


def weight(out: int, inner: int, *, seed: int = 0) -> Float32:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((out, inner)).astype(np.float32) / np.float32(inner) ** 0.5


def correlated(n: int, *, seed: int = 0) -> Float64:
    """The Gram of inputs with a decaying spectrum and powers that differ by a factor of 100."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((4 * n, n)) * np.geomspace(1, 0.03, n)
    mixed = X @ rng.standard_normal((n, n)) * rng.permutation(np.geomspace(1, 0.1, n))
    return linalg.gram(mixed) / len(X)


def feedback(W: Matrix, bits: int, R: Matrix, *, damping: float = 1e-2, **options: Any) -> Backbone:
    """`error_feedback` under the Gram R of the inputs alone."""
    return error_feedback(W, bits, inputs=GramRoot.of(R, damping=damping), **options)


def damped(gram: Float64, damping: float = 1e-2) -> Float64:
    H: Float64 = gram + damping * np.trace(gram) / len(gram) * np.eye(len(gram))
    return H


def weighted_error(W: Float32, backbone: Backbone, H: Float64) -> float:
    E = W - backbone.dequantized().astype(np.float64)
    return float(np.sum((E @ H) * E))


def unpacked(backbone: Backbone) -> Float32:
    """The codes, as MLX reads them."""
    ones = mx.ones(backbone.scales.shape)
    codes = mx.dequantize(
        backbone.weight, ones, mx.zeros_like(ones), backbone.group_size, backbone.bits
    )
    return np.asarray(codes)


def all_bytes(backbone: Backbone) -> list[bytes]:
    return [bytes_of(array) for array in backbone.arrays().values()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_plain_rounding_gives_the_numbers_of_mlx(
    bits: int, group_size: int, dtype: mx.Dtype
) -> None:
    W = mx.array(weight(5, 256)).astype(dtype)
    expected = mx.quantize(W, group_size, bits)
    sources: list[Matrix] = [W, np.asarray(W.astype(mx.float32))]
    for source in sources:
        backbone = round_to_nearest(source, bits, group_size=group_size, dtype=dtype)
        assert all_bytes(backbone) == [bytes_of(array) for array in expected]
        assert (backbone.shape, backbone.scales.dtype) == ((5, 256), dtype)


def test_plain_rounding_gives_the_layer_that_stock_conversion_gives() -> None:
    linear = nn.Linear(128, 6, bias=False)
    linear.set_dtype(mx.bfloat16)
    stock = nn.QuantizedLinear.from_linear(linear, 64, 4)
    backbone = round_to_nearest(linear.weight, 4)
    assert {k: bytes_of(v) for k, v in backbone.arrays().items()} == {
        k: bytes_of(v) for k, v in stock.parameters().items()
    }


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_stock_layer_gives_the_product_with_the_dequantised_weight(
    bits: int, dtype: mx.Dtype
) -> None:
    W = weight(7, 128)
    backbone = feedback(W, bits, correlated(128), dtype=dtype)
    layer = nn.QuantizedLinear(128, 7, bias=False, group_size=64, bits=bits)
    layer.update(backbone.arrays())
    x = np.random.default_rng(1).standard_normal((3, 128)).astype(np.float32)
    y = np.asarray(layer(mx.array(x)))
    limit = tolerance(float(np.linalg.norm(x, 2) * np.linalg.norm(W, 2)), W.shape)
    assert np.abs(y - x @ backbone.dequantized().T).max() <= limit


@repeatable
@given(st.integers(1, 9), st.integers(1, 3), any_bits, any_group, st.sampled_from(DTYPES))
def test_bytes_are_those_of_codes_scales_and_biases(
    rows: int, groups: int, bits: int, group_size: int, dtype: mx.Dtype
) -> None:
    W, gram = weight(rows, groups * group_size), np.eye(groups * group_size)
    entry = 4 if dtype == mx.float32 else 2
    expected = rows * groups * (group_size * bits // 8 + 2 * entry)
    for backbone in (
        round_to_nearest(W, bits, group_size=group_size, dtype=dtype),
        feedback(W, bits, gram, group_size=group_size, dtype=dtype, sweeps=0),
    ):
        assert backbone.nbytes == expected == sum(len(array) for array in all_bytes(backbone))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_evenly_spaced_entries_come_back_exactly_and_so_packed(bits: int, group_size: int) -> None:
    codes = np.random.default_rng(2).integers(2**bits, size=(5, 256)).astype(np.float32)
    codes[:, ::group_size], codes[:, 1::group_size] = 0, 2**bits - 1
    backbone = feedback(codes - 2, bits, correlated(256), group_size=group_size)
    assert unpacked(backbone).tolist() == codes.tolist()
    assert backbone.dequantized().tolist() == (codes - 2).tolist()


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_feedback_errs_less_than_plain_rounding_on_correlated_inputs(
    bits: int, group_size: int
) -> None:
    W, gram = weight(24, 128), correlated(128)
    plain = weighted_error(W, round_to_nearest(W, bits, group_size=group_size), gram)
    steps = [
        weighted_error(W, feedback(W, bits, gram, group_size=group_size, sweeps=n), gram)
        for n in (0, 2)
    ]
    assert steps[0] < 0.5 * plain
    assert steps[1] < steps[0]


@repeatable
@given(any_bits, seeds, st.sampled_from([2.0**-40, 1.0, 7.0]))
def test_under_a_multiple_of_the_identity_every_entry_gets_the_nearest_level(
    bits: int, seed: int, scale: float
) -> None:
    W = weight(6, 64, seed=seed)
    backbone = feedback(W, bits, scale * np.eye(64), group_size=32, dtype=mx.float32)
    step = np.repeat(np.asarray(backbone.scales), 32, axis=1)
    low = np.repeat(np.asarray(backbone.biases), 32, axis=1)
    high = low + step * (2**bits - 1)
    moved = np.abs(np.clip(W, low, high) - backbone.dequantized())
    assert (moved <= step / 2 + 4 * EPS * (np.abs(low) + np.abs(high))).all()
    plain = round_to_nearest(W, bits, group_size=32, dtype=mx.float32)
    identity = np.eye(64)
    assert weighted_error(W, backbone, identity) <= weighted_error(W, plain, identity)


def test_feedback_gives_the_codes_of_the_published_algorithm() -> None:
    W, H, size = weight(8, 96), damped(correlated(96)), 32
    found = Rounded.empty(W, Grid(3, size, mx.float32))
    round_with_feedback(found, feedback_of(H.copy()))
    upper = np.linalg.cholesky(np.linalg.inv(H)).T
    left = W.T.astype(np.float64)
    for j in range(96):
        step, start = found.levels[:, :, j // size]
        codes = np.clip(np.rint((left[j].astype(np.float32) - start) / step), 0, 7)
        assert codes.tolist() == found.codes[:, j].tolist()
        error = (left[j] - (step * codes + start)) / upper[j, j]
        left[j:] -= np.outer(upper[j, j:], error)


@repeatable
@given(any_bits, seeds)
def test_a_sweep_of_descent_never_raises_the_error(bits: int, seed: int) -> None:
    W, H = weight(6, 64, seed=seed), damped(correlated(64, seed=seed))
    H /= np.trace(H) / 64
    found = Rounded.empty(W, Grid(bits, 32, mx.bfloat16))
    round_with_feedback(found, feedback_of(H.copy()))

    def error() -> float:
        step, start = np.repeat(found.levels, 32, axis=2)
        assert np.abs(found.E - (W - (step * found.codes + start))).max() <= 4 * EPS
        E = found.E.astype(np.float64)
        return float(np.sum((E @ H) * E))

    before = error()
    for _ in range(3):
        descend(found, H.astype(np.float32))
        after = error()
        assert after <= before * (1 + 64 * EPS)
        before = after


@repeatable
@given(any_bits, seeds, st.sampled_from(DTYPES), st.sampled_from([0.0, 3.0]))
def test_fitted_levels_err_no_more_than_levels_from_least_to_largest(
    bits: int, seed: int, dtype: mx.Dtype, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    W = (rng.standard_normal((5, 32)) + offset).astype(np.float32)
    weights = rng.uniform(0.01, 1, 32).astype(np.float32)
    low, step = W.min(axis=1), np.ptp(W, axis=1) / np.float32(2**bits - 1)
    low, step = (
        np.asarray(mx.array(a).astype(dtype).astype(mx.float32))[:, None] for a in (low, step)
    )
    even = W - (step * np.clip(np.rint((W - low) / step), 0, 2**bits - 1) + low)
    fitted = nearest_errors(W, bits, weights=weights, group_size=32, dtype=dtype)
    errors = [E.astype(np.float64) ** 2 @ weights for E in (fitted, even)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_errors_of_plain_rounding_are_written_where_they_are_wanted() -> None:
    W, weights = weight(5, 64), np.linspace(1, 2, 64, dtype=np.float32)
    E = nearest_errors(W, 3, weights=weights)
    out = np.empty_like(W)
    assert nearest_errors(mx.array(W), 3, weights=7 * weights, out=out) is out
    np.testing.assert_array_equal(out, E)
    assert nearest_errors(out, 3, out=out) is out
    np.testing.assert_array_equal(out, nearest_errors(E, 3))


def test_plain_rounding_is_what_feedback_does_under_a_diagonal() -> None:
    W, weights = weight(5, 64), np.linspace(1, 2, 64, dtype=np.float32)
    E = nearest_errors(W, 3, weights=weights)
    found = feedback(W, 3, weights.reshape(64, 1, 1), damping=0.0, sweeps=0)
    assert np.abs(W - found.dequantized() - E).max() <= 4 * EPS


def test_weights_and_outputs_that_do_not_fit_are_refused() -> None:
    W = weight(5, 64)
    with pytest.raises(ValueError, match=r"`weights` must be 64 positive numbers, .* got 63"):
        nearest_errors(W, 3, weights=np.ones(63))
    with pytest.raises(ValueError, match=r"`weights` must be 64 positive .* the least 0"):
        nearest_errors(W, 3, weights=np.zeros(64))
    with pytest.raises(ValueError, match=r"`out` must be float32 of shape \(5, 64\), got float64"):
        nearest_errors(W, 3, out=np.empty((5, 64)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"levels of a group overflow .*float16"):
        nearest_errors(W * np.float32(1e6), 3, dtype=mx.float16)
    with pytest.raises(ValueError, match=r"`W` must not exceed 1e\+15"):
        nearest_errors(W * np.float32(1e20), 3)
    with pytest.raises(ValueError, match="`bits` must be one of"):
        nearest_errors(W, 7)


def test_the_identity_needs_no_gram() -> None:
    W = weight(3, 64)
    assert all_bytes(error_feedback(W, 3, inputs=GramRoot(None))) == all_bytes(
        feedback(W, 3, np.ones((64, 1, 1)), damping=0.0)
    )


def test_levels_serve_the_powerful_inputs_first() -> None:
    W, gram = weight(8, 64), np.diag(np.where(np.arange(64) % 16 == 0, 1.0, 1e-4))
    for sweeps in (0, 1):
        served, unaware = (feedback(W, 2, R, sweeps=sweeps) for R in (gram, np.eye(64)))
        assert weighted_error(W, served, gram) < 0.5 * weighted_error(W, unaware, gram)


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_the_nearest_for_the_scales_as_they_are_stored(dtype: mx.Dtype) -> None:
    W = weight(5, 64) + 3
    backbone = feedback(W, 8, np.eye(64), dtype=dtype, sweeps=0)
    scales, biases = (np.asarray(a.astype(mx.float32)) for a in (backbone.scales, backbone.biases))
    best = np.clip(np.rint((W - biases) / scales), 0, 255)
    assert unpacked(backbone).tolist() == best.tolist()


@repeatable
@given(any_bits, seeds)
def test_the_result_depends_on_nothing_but_the_numbers(bits: int, seed: int) -> None:
    W, gram = weight(4, 64, seed=seed), correlated(64, seed=seed)
    first = all_bytes(feedback(W, bits, gram))
    assert all_bytes(feedback(W, bits, gram)) == first
    for scale in (4.0, 2.0**200, 2.0**-200):
        assert all_bytes(feedback(np.asfortranarray(W), bits, scale * gram)) == first
    assert all_bytes(feedback(mx.array(W), bits, gram)) == first


def test_rows_do_not_depend_on_each_other() -> None:
    W, gram = weight(6, 64), correlated(64)
    whole, part = (feedback(A, 3, gram).dequantized() for A in (W, W[:3]))
    assert np.abs(whole[:3] - part).max() <= 4 * EPS * np.abs(W).max()


def test_inputs_that_never_fire_are_rounded_all_the_same() -> None:
    gram = correlated(64)
    gram[:, 10:20] = gram[10:20] = 0
    W = weight(4, 64)
    moved = np.abs(W - feedback(W, 8, gram).dequantized())[:, 10:20]
    assert moved.max() <= np.ptp(W, axis=1).max() / 255


@pytest.mark.parametrize("value", [0.0, 5.0, -0.25, 2.0**-60])
def test_constant_weights_come_back_exactly(value: float) -> None:
    W = np.full((3, 64), value, np.float32)
    assert bytes_of(feedback(W, 2, correlated(64)).dequantized() + 0) == bytes_of(W)


@pytest.mark.parametrize("scale", [1e-30, 1e14])
def test_small_and_large_weights_are_rounded_alike(scale: float) -> None:
    W, gram = weight(4, 64), correlated(64)
    found = feedback(W * np.float32(scale), 4, gram)
    plain = weighted_error(W, round_to_nearest(W, 4), gram)
    assert weighted_error(W * np.float32(scale), found, gram) < plain * scale**2


def test_a_backbone_is_read_as_the_matrix_it_stands_for() -> None:
    W, gram = weight(12, 64), correlated(64)
    backbone = feedback(W, 2, gram)
    left = W - backbone.dequantized().astype(np.float64)
    roots = {"inputs": GramRoot.of(gram, damping=1e-2), "outputs": GramRoot.of(None, damping=0.0)}
    cost = predicted_cost(difference(W, backbone), **roots)
    assert cost == pytest.approx(np.sum((left @ damped(gram)) * left) / 2, rel=1e-9)
    assert backbone.rows(slice(2, 5)).tolist() == backbone.dequantized()[2:5].tolist()


def both(W: Matrix, bits: int = 4, **options: object) -> None:
    """Call both functions, the first error of each being the same."""
    with pytest.raises((ValueError, TypeError)) as refused:
        error_feedback(W, bits, inputs=GramRoot(None), **options)  # type: ignore[arg-type]
    with pytest.raises(refused.type) as other:
        round_to_nearest(W, bits, **options)  # type: ignore[arg-type]
    assert str(other.value) == str(refused.value)
    raise refused.value


def test_arguments_that_are_not_offered_are_refused() -> None:
    W = weight(2, 64)
    with pytest.raises(ValueError, match=r"`bits` must be one of \(2, 3, 4, 5, 6, 8\), got 7"):
        both(W, 7)
    with pytest.raises(ValueError, match=r"`group_size` must be one of \(32, 64, 128\), got 16"):
        both(W, group_size=16)
    with pytest.raises(ValueError, match=r"`dtype` must be one of .*, got mlx.core.int32"):
        both(W, dtype=mx.int32)
    with pytest.raises(ValueError, match=r"`sweeps` must not be negative, got -1"):
        feedback(W, 4, np.eye(64), sweeps=-1)
    with pytest.raises(ValueError, match=r"`damping` must be finite and not negative, got -1"):
        feedback(W, 4, np.eye(64), damping=-1)


@pytest.mark.parametrize("shape", [(2, 100), (0, 64), (2, 0)])
def test_widths_that_the_group_does_not_divide_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"multiples of `group_size` = 64, .* \({shape[0]}, "):
        both(np.ones(shape, np.float32))


def test_weights_that_are_no_finite_matrix_are_refused() -> None:
    W = weight(2, 64)
    with pytest.raises(TypeError, match="`W` must hold floating-point numbers"):
        both(np.ones((2, 64), int))
    with pytest.raises(ValueError, match="`W` must be a matrix"):
        both(W[0])
    W[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"`W` must be finite .* the first at \(1, 3\)"):
        both(W)


def test_what_the_dtype_of_the_scales_cannot_hold_is_refused() -> None:
    W = weight(2, 64) * np.float32(1e6)
    with pytest.raises(ValueError, match="`W` must be finite"):
        round_to_nearest(W, 4, dtype=mx.float16)
    with pytest.raises(ValueError, match=r"levels of a group overflow .*float16.* wider `dtype`"):
        feedback(W, 4, np.eye(64), dtype=mx.float16)
    with pytest.raises(ValueError, match=r"`W` must not exceed 1e\+15 in magnitude, got"):
        feedback(W * np.float32(1e12), 4, np.eye(64))


def test_a_gram_that_does_not_fit_is_refused() -> None:
    W = weight(2, 64)
    with pytest.raises(ValueError, match=r"`inputs` must be of size 64, .* columns of `W`, got 32"):
        feedback(W, 4, np.eye(32), group_size=32)
    with pytest.raises(ValueError, match="`gram` must have a positive trace, got 0"):
        feedback(W, 4, np.zeros((64, 64)))
    with pytest.raises(ValueError, match="`gram` must be positive definite after the damping"):
        feedback(W, 4, np.diag([-1.0] + [1.0] * 63))
    with pytest.raises(ValueError, match="`gram` must be finite"):
        feedback(W, 4, np.full((64, 64), np.inf))
