"""Quantised factors: half a step at most, every byte counted, nothing hidden."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core.factors.quantize import BITS, GROUP_SIZES, dequantize_factors, quantize_factors
from plastic_core.linalg import Float32, Float64
from plastic_core.testing import EPS, repeatable
from plastic_core.testing import bits as bytes_of

sides = st.sampled_from([1, 2, 31, 32, 33, 64, 70, 129])
ranks = st.sampled_from([1, 2, 5, 13])


def factors(
    m: int, r: int, n: int, *, seed: int = 0, scale: float = 1.0, offset: float = 0.0
) -> tuple[Float32, Float32, Float32]:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Float32:
        return (scale * (rng.standard_normal(shape) + offset)).astype(np.float32)

    return draw(m, r), draw(r), draw(r, n)


def steps(M: Float32, bits: int, group_size: int) -> tuple[Float64, Float64]:
    """The step that each entry's group has, from its own entries, and their magnitude."""
    result, size = np.empty(M.shape), np.empty(M.shape)
    for start in range(0, M.shape[1], group_size):
        group = M[:, start : start + group_size].astype(np.float64)
        extent = group.max(axis=1, keepdims=True) - group.min(axis=1, keepdims=True)
        result[:, start : start + group_size] = extent / (2**bits - 1)
        size[:, start : start + group_size] = np.abs(group).max(axis=1, keepdims=True)
    return result, size


@repeatable
@given(
    st.tuples(sides, ranks, sides),
    st.sampled_from(BITS),
    st.sampled_from(GROUP_SIZES),
    st.integers(0, 99),
    st.sampled_from([1.0, 1e30, 1e-30]),
    st.sampled_from([0.0, 0.3, 20.0]),
)
def test_no_entry_moves_by_more_than_half_a_step(
    shape: tuple[int, int, int],
    bits: int,
    group_size: int,
    seed: int,
    scale: float,
    offset: float,
) -> None:
    U, S, Vh = factors(*shape, seed=seed, scale=scale, offset=offset)
    back = dequantize_factors(quantize_factors(U, S, Vh, bits, group_size=group_size))
    assert bytes_of(back.S) == bytes_of(S)
    for M, result in ((U.T, back.U.T), (Vh, back.Vh)):
        assert result.shape == M.shape
        step, size = steps(M, bits, group_size)
        moved = np.abs(np.asarray(result, dtype=np.float64) - M)
        assert (moved <= step / 2 + 8 * EPS * size).all()


@repeatable
@given(st.tuples(sides, ranks, sides), st.sampled_from(BITS), st.sampled_from(GROUP_SIZES))
def test_bytes_are_those_of_codes_scales_biases_and_padding(
    shape: tuple[int, int, int], bits: int, group_size: int
) -> None:
    m, r, n = shape
    U, S, Vh = factors(m, r, n)
    q = quantize_factors(U, S, Vh, bits, group_size=group_size)
    groups = r * (-(-m // group_size) + -(-n // group_size))
    assert q.nbytes == groups * group_size * bits // 8 + groups * 8 + 4 * r
    stored = [*q.Ut[:3], q.S, *q.Vh[:3]]
    assert q.nbytes == sum(len(bytes_of(array)) for array in stored)
    assert (q.rank, q.shape) == (r, (m, n))


@pytest.mark.parametrize("bits", BITS)
def test_evenly_spaced_entries_come_back_exactly(bits: int) -> None:
    row = np.random.default_rng(2).integers(2**bits, size=(1, 256)).astype(np.float32)
    row[:, ::64], row[:, 1::64] = 0, 2**bits - 1
    row -= 2
    back = dequantize_factors(quantize_factors(row.T, np.ones(1), row, bits))
    assert back.Vh.tolist() == row.tolist()
    assert back.U.tolist() == row.T.tolist()


@pytest.mark.parametrize("value", [0.0, 5.0, -1e30, 1e-30])
def test_constant_groups_come_back_exactly(value: float) -> None:
    M = np.full((3, 40), value, dtype=np.float32)
    back = dequantize_factors(quantize_factors(M.T, np.ones(3), M, 2, group_size=32))
    assert bytes_of(back.Vh) == bytes_of(M)


@pytest.mark.parametrize("bits", BITS)
def test_stock_quantized_matmul_understands_the_packing(bits: int) -> None:
    U, S, Vh = factors(64, 3, 128)
    q = quantize_factors(U, S, Vh, bits)
    x = np.random.default_rng(1).standard_normal((2, 128)).astype(np.float32)
    weight, scales, biases, _ = q.Vh
    y = mx.quantized_matmul(mx.array(x), weight, scales, biases, group_size=64, bits=bits)
    expected = x @ np.asarray(dequantize_factors(q).Vh).T
    limit = 10 * 128 * EPS * np.linalg.norm(x) * np.linalg.norm(Vh)
    assert np.abs(np.asarray(y) - expected).max() <= limit


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_factors_are_read_exactly(dtype: mx.Dtype) -> None:
    U, S, Vh = (mx.array(f).astype(dtype) for f in factors(33, 2, 65))
    q = quantize_factors(U, S, Vh)
    same = quantize_factors(U.astype(mx.float32), S, Vh.astype(mx.float32))
    assert bytes_of(q.Vh.weight) == bytes_of(same.Vh.weight)
    assert bytes_of(q.Ut.weight) == bytes_of(same.Ut.weight)
    assert q.S.tolist() == S.tolist()
    assert {f.dtype for f in dequantize_factors(q)} == {mx.float32}


def test_rank_zero_is_kept() -> None:
    q = quantize_factors(*factors(40, 0, 50))
    assert q.nbytes == 0
    assert [f.shape for f in dequantize_factors(q)] == [(40, 0), (0,), (0, 50)]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_number_that_is_not_finite_is_refused_and_named(which: int, wrong: float) -> None:
    arrays = factors(5, 2, 6)
    arrays[which].flat[1] = wrong
    with pytest.raises(ValueError, match=rf"`{('U', 'S', 'Vh')[which]}` must be finite"):
        quantize_factors(*arrays)


def test_a_range_beyond_float32_is_refused() -> None:
    U, S, Vh = factors(4, 1, 4)
    Vh[0, :2] = 3e38, -3e38
    with pytest.raises(ValueError, match="range of a group overflows float32"):
        quantize_factors(U, S, Vh)


@pytest.mark.parametrize("bits", [0, 1, 7, 16])
def test_bits_that_are_not_offered_are_refused(bits: int) -> None:
    U, S, Vh = factors(4, 1, 4)
    with pytest.raises(ValueError, match=rf"`bits` must be one of .*, got {bits}\."):
        quantize_factors(U, S, Vh, bits)


def test_group_sizes_that_are_not_offered_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`group_size` must be one of .*, got 16\."):
        quantize_factors(*factors(4, 1, 4), group_size=16)


def test_factors_that_do_not_fit_together_are_refused() -> None:
    U, S, Vh = factors(4, 2, 6)
    with pytest.raises(ValueError, match=r"got \(4, 2\), \(2,\) and \(1, 6\)"):
        quantize_factors(U, S, Vh[:1])
    with pytest.raises(ValueError, match=r"got \(0, 2\), \(2,\) and \(2, 6\)"):
        quantize_factors(U[:0], S, Vh)
