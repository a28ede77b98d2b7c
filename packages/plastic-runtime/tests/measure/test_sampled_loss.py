"""Labels drawn in NumPy, and the gradients of their loss."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_core import linalg
from plastic_runtime.measure.sampled_loss import (
    ROWS,
    SPAN,
    draws,
    mlx_labels,
    sampled_loss,
    sampled_residuals,
)

Float64 = NDArray[np.float64]
EPS = float(np.finfo(np.float32).eps)


def softmax(z: NDArray[np.float32]) -> Float64:
    e = np.exp(z.astype(np.float64) - z.max(axis=-1, keepdims=True))
    p: Float64 = e / e.sum(axis=-1, keepdims=True)
    return p


def problem(
    seed: int, rows: int, vocabulary: int, spread: float
) -> tuple[NDArray[np.float32], Float64]:
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_normal((rows, vocabulary), dtype=np.float32)
    return logits, rng.random(rows)


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(0, 2 * ROWS + 1),
    vocabulary=st.integers(1, 3 * SPAN),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
)
def test_a_residual_is_p_less_the_label_at_the_cumulative_probability(
    seed: int, rows: int, vocabulary: int, spread: float
) -> None:
    logits, uniform = problem(seed, rows, vocabulary, spread)
    p, found = softmax(logits), sampled_residuals(logits, uniform)
    e = p - found
    labels = e.argmax(axis=-1) if rows else np.zeros(0, int)
    limit = 4 * EPS * (spread * 10 + vocabulary**0.5)
    assert np.abs(e - np.eye(vocabulary)[labels]).max(initial=0) <= limit
    # Up to rounding, the label is the first whose cumulative probability exceeds the number.
    cumulative = np.concatenate([np.zeros((rows, 1)), np.cumsum(p, axis=-1)], axis=-1)
    for row, label in enumerate(labels):
        assert cumulative[row, label] - limit <= uniform[row] <= cumulative[row, label + 1] + limit


@pytest.mark.parametrize("hot", [0, 1, SPAN - 1, SPAN, 2 * SPAN])
def test_a_token_without_probability_is_never_drawn(hot: int) -> None:
    logits = np.full((4, 2 * SPAN + 1), -1e9, np.float32)
    logits[:, hot] = 7
    found = sampled_residuals(logits, np.array([0.0, 0.3, 0.999, np.nextafter(1, 0)]))
    assert not found.any()


def test_labels_come_as_often_as_they_are_likely() -> None:
    logits, _ = problem(1, 1, 700, 1.0)
    p, count = softmax(logits)[0], 20_000
    uniform = next(draws(3)).random(count)
    found = sampled_residuals(np.repeat(logits, count, axis=0), uniform)
    often = (p - found).mean(axis=0)
    assert np.abs(often - p).max() <= 5 * np.sqrt(p.max() / count)


def test_mlx_finds_the_same_labels() -> None:
    logits, uniform = problem(2, 50, 900, 2.0)
    labels = np.asarray(mlx_labels(mx.array(logits), uniform))
    mine = softmax(logits) - sampled_residuals(logits, uniform)
    assert np.array_equal(labels, mine.argmax(axis=-1))


@pytest.mark.skipif(not linalg.on_cpu(), reason="on a GPU the loss stays in MLX")
def test_the_gradient_is_that_of_the_cross_entropy_of_the_labels() -> None:
    logits = problem(4, 12, 33, 2.0)[0].reshape(3, 4, 33)
    x = mx.array(logits)
    labels = mlx_labels(x, next(draws(5)).random((3, 4)))
    own = mx.grad(lambda x: 3 * sampled_loss(2 * x, next(draws(5))))(x / 2)
    stock = mx.grad(lambda x: 3 * nn.losses.cross_entropy(2 * x, labels, reduction="sum"))(x / 2)
    assert np.abs(np.asarray(own - stock)).max() <= 100 * EPS


def test_every_seed_and_batch_draws_anew_and_pieces_draw_what_the_whole_does() -> None:
    first, second = (draw.random(6) for draw, _ in zip(draws(0), range(2), strict=False))
    other = next(draws(-1)).random(6)
    assert len({*first, *second, *other}) == 18
    again = next(draws(0))
    assert [*again.random(2), *again.random((2, 2)).ravel()] == [*first]
