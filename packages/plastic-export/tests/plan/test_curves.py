"""The curve of a matrix is what its spectrum says, at the price of its offer."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import Correction, GramRoot, certify, loss_factors, round_to_nearest
from plastic_core.rounding import UNPACKED
from plastic_core.testing import matrix_from_spectrum
from plastic_export.plan.curves import curve_of, curve_ranks
from plastic_export.plan.gram_uses import GramRoots
from plastic_export.plan.offers import Offer

ONE = GramRoot(None)


@given(
    st.lists(st.floats(1.0, 10.0), min_size=2, max_size=12),
    st.floats(0.2, 5.0),
    st.booleans(),
)
def test_it_is_half_the_energy_that_is_left_out(
    values: list[float], factor: float, rounded: bool
) -> None:
    s = np.sort(values)[::-1]
    error = matrix_from_spectrum(s, 64, 32, seed=1).astype(np.float32)
    backbone = round_to_nearest(error, 2, dtype=mx.float32, group_size=32) if rounded else None
    W = error if backbone is None else error + backbone.dequantized()
    factors = loss_factors(error, s.size, inputs=ONE, outputs=ONE)
    part = Correction.rounded(factors, UNPACKED, inputs=ONE, outputs=ONE, dtype=mx.float32)
    left = np.append((s**2)[::-1].cumsum()[::-1], 0.0)
    certificate = certify(error, part.operator().U, part.operator().Vh)
    offer = Offer(None, 0, factor * 1e-3, s.size, UNPACKED)
    curve = curve_of(W, backbone, part.leading(s.size - 1), GramRoots(ONE, ONE), offer, certificate)
    ranks = np.array(curve.ranks)
    assert ranks.tolist() == list(range(0 if rounded else 1, s.size))
    scale = offer.cost / (left[s.size - 1] / 2)
    assert curve.predicted_kl == pytest.approx(scale * left[ranks] / 2, rel=1e-3)
    norm = np.linalg.norm(W)
    assert curve.relative_error[:-1] == pytest.approx(np.sqrt(left[ranks[:-1]]) / norm, rel=1e-3)
    assert curve.spectral_norm == pytest.approx(np.linalg.norm(W, 2), rel=0.01)


@given(st.integers(1, 5000), st.booleans())
def test_its_ranks_are_few_and_reach_both_ends(most: int, bare: bool) -> None:
    ranks = curve_ranks(most, bare=bare)
    assert ranks[0] == (1 if bare else 0)
    assert ranks[-1] == most
    assert len(ranks) <= 65
    assert list(ranks) == sorted(set(ranks))
