"""Shares of a batch: together they are the batch, and their weighted losses its mean loss."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from plastic_runtime.training import share_of, weighted

WIDTH, VOCABULARY = 12, 7
LENGTHS = [[0, 12], [3, 5], [0, 1], [4, 40], [0, 9], [2, 2]]
"""Offsets and ends: a whole row, an answer, a single token that nothing precedes, one cut off."""


class Bigrams(nn.Module):
    """Logits of the next token by the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.table = mx.random.normal((VOCABULARY, VOCABULARY), key=mx.random.key(1))

    def __call__(self, rows: mx.array) -> mx.array:
        return self.table[rows]


def mean_loss(model: nn.Module, rows: mx.array, lengths: mx.array) -> tuple[mx.array, mx.array]:
    """Return the mean cross entropy of the targets from offset to end, and their number."""
    steps = mx.arange(1, rows.shape[1])
    learnt = (lengths[:, :1] <= steps) & (steps <= lengths[:, 1:])
    losses = nn.losses.cross_entropy(model(rows[:, :-1]), rows[:, 1:])
    return (losses * learnt).sum() / learnt.sum(), learnt.sum()


@pytest.fixture
def batch() -> tuple[mx.array, mx.array]:
    rows = mx.random.randint(0, VOCABULARY, (len(LENGTHS), WIDTH), key=mx.random.key(0))
    return rows, mx.array(LENGTHS)


def test_the_loss_here_is_that_of_mlx_lm(batch: tuple[mx.array, mx.array]) -> None:
    trainer = pytest.importorskip("mlx_lm.tuner.trainer")
    model = Bigrams()
    for found, expected in zip(
        mean_loss(model, *batch), trainer.default_loss(model, *batch), strict=True
    ):
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_mean_over_the_processes_is_the_mean_over_the_tokens(
    batch: tuple[mx.array, mx.array], size: int
) -> None:
    model = Bigrams()
    shares = [share_of(*batch, rank, size) for rank in range(size)]
    whole, tokens = mean_loss(model, *batch)
    found = [weighted(mean_loss)(model, *share) for share in shares]
    assert sum(int(n) for _, n in found) == int(tokens)
    assert np.isclose(np.mean([float(v) for v, _ in found]), float(whole), rtol=1e-6)

    loss = nn.value_and_grad(model, lambda m, *b: weighted(mean_loss)(m, *b)[0])
    slopes = [loss(model, *share)[1]["table"] for share in shares]
    expected = nn.value_and_grad(model, lambda m, *b: mean_loss(m, *b)[0])
    exact = expected(model, *batch)[1]["table"]
    assert mx.allclose(sum(slopes) / size, exact, rtol=1e-5, atol=1e-7)


def test_every_row_is_in_one_share(batch: tuple[mx.array, mx.array]) -> None:
    shares = [share_of(*batch, rank, 3) for rank in range(3)]
    every = sorted(tuple(row) for share in shares for row in share.rows.tolist())
    assert every == sorted(tuple(row) for row in batch[0].tolist())
    assert all(share.rows.shape == (2, WIDTH) for share in shares)


def test_a_share_with_fewer_tokens_weighs_less(batch: tuple[mx.array, mx.array]) -> None:
    shares = [share_of(*batch, rank, 2) for rank in range(2)]
    # Of the targets, the tokens 1 to 11, rows 0, 2, 4 learn 11, 1, 9, and rows 1, 3, 5: 3, 8, 1.
    assert [share.weight.item() for share in shares] == pytest.approx([42 / 33, 24 / 33])
