"""AdamW that moves no entry against the gradient of the step."""

from __future__ import annotations

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_runtime import CautiousAdamW

RATE = 1e-2


def pair(weight_decay: float) -> tuple[CautiousAdamW, optim.AdamW]:
    """Ours and the plain one."""
    return tuple(
        kind(RATE, weight_decay=weight_decay, bias_correction=True)
        for kind in (CautiousAdamW, optim.AdamW)
    )


@given(seed=st.integers(0, 2**32 - 1), weight_decay=st.sampled_from([0.0, 0.1]))
def test_an_entry_moves_as_under_adamw_or_decays_alone(seed: int, weight_decay: float) -> None:
    drawn = np.random.default_rng(seed)
    cautious, plain = pair(weight_decay)
    at = mx.array(drawn.standard_normal((4, 3)), mx.float32)
    for _ in range(6):
        gradient = mx.array(drawn.standard_normal((4, 3)), mx.float32)
        moved = plain.apply_gradients({"x": gradient}, {"x": at})["x"]
        new = cautious.apply_gradients({"x": gradient}, {"x": at})["x"]
        stayed = at * (1 - mx.array(RATE) * weight_decay)
        agrees = (stayed - moved) * gradient > 0
        assert mx.array_equal(new, mx.where(agrees, moved, stayed))
        at = new
    for name in ("m", "v"):
        assert mx.array_equal(cautious.state["x"][name], plain.state["x"][name])


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e18])
def test_gradients_of_one_sign_move_as_under_adamw_whatever_their_size(size: float) -> None:
    cautious, plain = pair(0.0)
    ours = theirs = {"x": mx.zeros(5)}
    for i in range(4):
        gradient = {"x": mx.full(5, size * (i + 1))}
        ours = cautious.apply_gradients(gradient, ours)
        theirs = plain.apply_gradients(gradient, theirs)
        assert mx.array_equal(ours["x"], theirs["x"])


def test_what_is_noise_moves_less_than_under_adamw() -> None:
    ends = []
    for optimizer in pair(0.0):
        drawn, at = np.random.default_rng(0), {"x": mx.zeros(4096)}
        for _ in range(50):
            gradient = mx.array(drawn.standard_normal(4096), mx.float32)
            at = optimizer.apply_gradients({"x": gradient}, at)
        ends.append(mx.linalg.norm(at["x"]).item())
    cautious, plain = ends
    assert cautious < plain
