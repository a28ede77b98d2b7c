"""AdamW whose steps go no further than the mean gradient and that of the step agree on."""

from __future__ import annotations

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_runtime import CautiousAdamW
from plastic_runtime.training.cautious import minmod

RATE, B1, B2, EPS = 1e-2, 0.9, 0.999, 1e-8
F32 = np.finfo(np.float32).eps


def pair(weight_decay: float, *, corrected: bool = True) -> list[optim.AdamW]:
    """Ours and the plain one."""
    kinds = (CautiousAdamW, optim.AdamW)
    return [kind(RATE, weight_decay=weight_decay, bias_correction=corrected) for kind in kinds]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(2, 3, 2), (-3, -2, -2), (2, -3, 0), (-1, 1, 0), (0, 5, 0), (5, 0, 0), (0, 0, 0)],
)
def test_minmod_is_the_smaller_where_signs_agree(a: float, b: float, expected: float) -> None:
    assert minmod(mx.array(a, mx.float32), mx.array(b, mx.float32)).item() == expected


@given(
    seed=st.integers(0, 2**32 - 1),
    weight_decay=st.sampled_from([0.0, 0.1]),
    corrected=st.booleans(),
)
def test_steps_are_those_of_the_formula_in_float64(
    seed: int, weight_decay: float, corrected: bool
) -> None:
    drawn = np.random.default_rng(seed)
    cautious, plain = pair(weight_decay, corrected=corrected)
    at = mx.array(drawn.standard_normal((4, 3)), mx.float32)
    x, m, v = np.array(at, np.float64), np.zeros((4, 3)), np.zeros((4, 3))
    for t in range(1, 7):
        g = drawn.standard_normal((4, 3)).astype(np.float32)
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * np.square(g, dtype=np.float64)
        mean, square = (m / (1 - B1**t), v / (1 - B2**t)) if corrected else (m, v)
        agreed = np.where(mean * g > 0, np.sign(g) * np.minimum(np.abs(mean), np.abs(g)), 0)
        x = x * (1 - RATE * weight_decay) - RATE * agreed / (np.sqrt(square) + EPS)
        plain.apply_gradients({"x": mx.array(g)}, {"x": at})
        at = cautious.apply_gradients({"x": mx.array(g)}, {"x": at})["x"]
        # Means of both signs cancel, and squares are as good as their small weight 1 - B2.
        assert np.abs(np.array(at) - x).max() < 64 * t * F32 * max(1.0, np.abs(x).max())
    for name in ("m", "v"):
        assert mx.array_equal(cautious.state["x"][name], plain.state["x"][name])


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e15])
def test_gradients_that_do_not_change_move_as_under_adamw_whatever_their_size(size: float) -> None:
    cautious, plain = pair(0.0)
    ours = theirs = {"x": mx.zeros(5)}
    for _ in range(4):
        ours = cautious.apply_gradients({"x": mx.full(5, size)}, ours)
        theirs = plain.apply_gradients({"x": mx.full(5, size)}, theirs)
        assert mx.allclose(ours["x"], theirs["x"], rtol=16 * F32, atol=0.0)


def test_a_gradient_that_is_zero_up_to_rounding_decides_nothing() -> None:
    ends = []
    for noise in (1e-9, -1e-9):
        cautious, _ = pair(0.0)
        at = cautious.apply_gradients({"x": mx.full(3, 1.0)}, {"x": mx.zeros(3)})
        ends.append(cautious.apply_gradients({"x": mx.full(3, noise)}, at)["x"])
    assert mx.abs(ends[0] - ends[1]).max().item() < 1e-8 * RATE / 0.5


def test_what_is_noise_moves_less_than_under_adamw() -> None:
    ends = []
    for optimizer in pair(0.0):
        drawn, at = np.random.default_rng(0), {"x": mx.zeros(4096)}
        for _ in range(50):
            gradient = mx.array(drawn.standard_normal(4096), mx.float32)
            at = optimizer.apply_gradients({"x": gradient}, at)
        ends.append(mx.linalg.norm(at["x"]).item())
    cautious, plain = ends
    assert cautious < 0.75 * plain
