"""Out and back: quantised within a known bound, parked and woken to the bit."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core.factors.certificate import certify
from plastic_core.factors.factors import Factors
from plastic_core.factors.lowrank import factorized_lowrank
from plastic_core.factors.quantize import BITS, PackedMatrix, dequantize_factors, quantize_factors
from plastic_core.linalg import Float64, to_numpy
from plastic_core.loss.weighted import output_basis
from plastic_core.testing import Sample, bits, matrices, repeatable, tolerance

DTYPES = [mx.float16, mx.bfloat16, mx.float32]


def saved_and_loaded(arrays: dict[str, mx.array], folder: Path) -> dict[str, mx.array]:
    path = str(folder / "arrays.safetensors")
    mx.save_safetensors(path, arrays)
    loaded = mx.load(path)
    assert isinstance(loaded, dict)
    return loaded


def as_doubles(factors: Factors) -> list[Float64]:
    return [to_numpy(f).astype(np.float64) for f in factors]


@repeatable
@given(matrices(max_side=48, scales=(2.0**-100, 1.0, 2.0**100)), st.sampled_from(BITS))
def test_factorise_quantise_dequantise_stays_within_the_bound(sample: Sample, bits: int) -> None:
    A, s = sample
    r = max(1, min(A.shape) // 2)
    factors = factorized_lowrank(A, r)
    U, S, Vh = as_doubles(dequantize_factors(quantize_factors(*factors, bits, group_size=32)))
    # No entry moves by more than half a step, and no step exceeds twice the largest entry.
    U0, _, V0 = as_doubles(factors)
    moved_U, moved_V = (
        np.abs(M).max() * np.sqrt(M.size) / (2**bits - 1) + tolerance(1.0, A.shape)
        for M in (U0, V0)
    )
    rounding = s[0] * (moved_U + (1 + moved_U) * moved_V)
    error = np.linalg.norm(A - (U * S) @ Vh)
    assert error <= np.linalg.norm(s[r:]) + rounding + tolerance(s, A.shape)


@repeatable
@given(matrices(), st.sampled_from(BITS))
def test_certificate_of_quantised_factors_is_that_of_the_bytes_kept(
    sample: Sample, bits: int
) -> None:
    A, s = sample
    back = dequantize_factors(quantize_factors(*factorized_lowrank(A, 1), bits, group_size=32))
    U, S, Vh = as_doubles(back)
    if s[0] > 0:
        scaled = np.asarray(back.S)[:, None] * np.asarray(back.Vh)
        error = np.linalg.norm(A - (U * S) @ Vh) / np.linalg.norm(A.astype(np.float64))
        stated = certify(A, back.U, scaled).relative_error
        assert abs(stated - error) <= tolerance(1.0, A.shape) * (1 + error)


@pytest.mark.parametrize("dtype", DTYPES)
@repeatable
@given(sample=matrices(), data=st.data())
def test_components_parked_and_woken_are_the_same_bits(
    dtype: mx.Dtype, sample: Sample, data: st.DataObject
) -> None:
    factors = Factors(*(f.astype(dtype) for f in factorized_lowrank(sample.A, min(sample.A.shape))))
    cut = data.draw(st.integers(0, factors.rank))
    U, S, Vh = factors
    awake, asleep = (U[:, :cut], S[:cut], Vh[:cut]), (U[:, cut:], S[cut:], Vh[cut:])
    rejoined = [
        mx.concatenate([a, b], axis=axis)
        for a, b, axis in zip(awake, asleep, (1, 0, 0), strict=True)
    ]
    for before, after in zip(factors, rejoined, strict=True):
        assert bits(before) == bits(after)


@repeatable
@given(matrices(scales=(2.0**-100, 1.0, 2.0**100)), st.integers(0, 99))
def test_awake_and_asleep_halves_of_the_output_basis_restore_the_matrix(
    sample: Sample, seed: int
) -> None:
    A, s = sample
    X = np.random.default_rng(seed).standard_normal((3, A.shape[1]))
    U = output_basis(A, gram=X.T @ X).U
    V = U.T @ A
    cut = U.shape[1] // 2
    restored = U[:, :cut] @ V[:cut] + U[:, cut:] @ V[cut:]
    assert np.linalg.norm(restored.astype(np.float64) - A, 2) <= tolerance(s, A.shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_saved_and_loaded_are_the_same_bits(dtype: mx.Dtype, tmp_path: Path) -> None:
    A = np.random.default_rng(0).standard_normal((6, 9))
    stored = {name: f.astype(dtype) for name, f in factorized_lowrank(A, 4)._asdict().items()}
    loaded = saved_and_loaded(stored, tmp_path)
    for name, f in stored.items():
        assert loaded[name].dtype == dtype
        assert bits(loaded[name]) == bits(f)


@pytest.mark.parametrize("width", BITS)
def test_quantised_factors_saved_and_loaded_mean_the_same_numbers(
    width: int, tmp_path: Path
) -> None:
    A = np.random.default_rng(1).standard_normal((40, 70))
    q = quantize_factors(*factorized_lowrank(A, 5), width, group_size=32)
    stored = {"S": q.S}
    for side, packed in (("Ut", q.Ut), ("Vh", q.Vh)):
        stored[f"{side}.weight"] = packed.weight
        stored[f"{side}.scales"] = packed.scales
        stored[f"{side}.biases"] = packed.biases
    loaded = saved_and_loaded(stored, tmp_path)
    Ut, Vh = (
        PackedMatrix(
            loaded[f"{side}.weight"], loaded[f"{side}.scales"], loaded[f"{side}.biases"], columns
        )
        for side, columns in zip(("Ut", "Vh"), q.shape, strict=True)
    )
    again = replace(q, Ut=Ut, S=loaded["S"], Vh=Vh)
    for before, after in zip(dequantize_factors(q), dequantize_factors(again), strict=True):
        assert bits(before) == bits(after)
