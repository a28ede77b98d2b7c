"""Factors in float16."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_export.adapters.adapter import LoraPair
from plastic_export.adapters.half_precision import in_half

UNIT = 2.0**-11  # half the spacing of float16 at 1


def drawn(seed: int, rank: int, left: int, right: int) -> LoraPair:
    """An update whose factors are of very different sizes."""
    rng = np.random.default_rng(seed)
    A = np.ldexp(rng.uniform(0.5, 1, (rank, 7)), left).astype(np.float32)
    B = np.ldexp(rng.uniform(0.5, 1, (5, rank)), right).astype(np.float32)
    return LoraPair(mx.array(A), mx.array(B), 0.5)


@given(st.integers(0, 99), st.integers(0, 4), st.integers(-40, 40), st.integers(-40, 40))
def test_product_is_right_to_the_rounding_of_float16(
    seed: int, rank: int, left: int, right: int
) -> None:
    if abs(left + right) > 16:  # the product itself leaves the range
        left = -right
    pair = drawn(seed, rank, left, right)
    half = in_half(pair)
    assert half.A.dtype == half.B.dtype == mx.float16
    assert half.scale == pair.scale
    exact = np.array(pair.B, np.float64) @ np.array(pair.A, np.float64)
    found = np.array(half.B, np.float64) @ np.array(half.A, np.float64)
    # Entries are positive, so the relative errors of two factors and of no sum add up.
    assert np.all(np.abs(found - exact) <= (2 * UNIT + UNIT**2) * exact)


def test_balance_is_exact() -> None:
    pair = LoraPair(mx.full((1, 3), 1.5 * 2.0**30), mx.full((2, 1), 1.25 * 2.0**-30))
    half = in_half(pair)
    assert half.A.tolist() == [[1.5] * 3]
    assert half.B.tolist() == [[1.25]] * 2


def test_zeros_stay_zeros() -> None:
    half = in_half(LoraPair(mx.ones((2, 3)), mx.zeros((4, 2))))
    assert half.A.tolist() == [[1.0] * 3] * 2
    assert not mx.any(half.B).item()


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"an entry of 1.05e\+06 is beyond the 65,504 of float16"):
        in_half(LoraPair(mx.full((1, 1), 2.0**20), mx.full((1, 1), 2.0**20)))
