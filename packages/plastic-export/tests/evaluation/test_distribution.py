"""Percentiles, where there are enough tokens for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from plastic_export.evaluation.distribution import PERCENTS, Distribution, needed_tokens

VALUES = arrays(np.float64, st.integers(1, 1500), elements=st.floats(-1e6, 1e6))


@given(VALUES)
def test_percentiles_interpolate_as_numpy_does(values: NDArray[np.float64]) -> None:
    found = Distribution.of(values)
    assert (found.tokens, found.least, found.most) == (len(values), values.min(), values.max())
    for percent, value in found.percentiles.items():
        if len(values) < needed_tokens(percent):
            assert value is None
        else:
            assert value == pytest.approx(np.quantile(values, percent / 100), abs=1e-6)


def test_a_percentile_needs_a_token_beyond_it() -> None:
    assert [needed_tokens(p) for p in PERCENTS] == [1000, 100, 20, 10, 4, 2, 4, 10, 20, 100, 1000]
    assert Distribution.of(np.arange(999.0)).percentiles[99.9] is None
    assert Distribution.of(np.arange(1000.0)).percentiles[99.9] == pytest.approx(998.001)


def test_infinite_numbers_are_the_largest() -> None:
    found = Distribution.of(np.array([1.0, math.inf, 2.0, math.inf]))
    assert (found.median, found.percentiles[75.0], found.most) == (math.inf, math.inf, math.inf)
    assert found.percentiles[25.0] == 1.75
