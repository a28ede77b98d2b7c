"""The divergence from the base as a term of the loss: its value, its gradient, its windows."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from plastic_core import RankLayer
from plastic_export.model import divergences, log_softmax
from plastic_export.training.forgetting.remembering import (
    LIKELIEST,
    Remembering,
    divergence_from_known,
    know,
)
from plastic_runtime import attach, find_rank_layers

VOCABULARY = 200
WINDOWS = mx.array(np.random.default_rng(0).integers(0, VOCABULARY, (5, 12)).astype(np.int32))


class Small(nn.Module):
    """An embedding, two numbered layers and as many logits as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.layers = [nn.Linear(8, 8), nn.Linear(8, VOCABULARY)]

    def __call__(self, tokens: mx.array) -> mx.array:
        logits: mx.array = self.layers[1](mx.tanh(self.layers[0](self.embed(tokens))))
        return logits


def moved() -> Small:
    """A model whose plastic parts have moved it away from its base."""
    mx.random.seed(0)
    model = Small()
    for layer in attach(model, 2).values():
        layer.set_factors(layer.U, mx.array([1.5, -2.0]), layer.Vh)
    return model


def task(model: nn.Module, batch: mx.array, lengths: mx.array) -> tuple[mx.array, mx.array]:
    """A loss of the form of mlx-lm's."""
    return (model(batch) ** 2).mean() * lengths, mx.array(7)


def logits(seed: int, vocabulary: int, scale: float = 3.0) -> mx.array:
    drawn = np.random.default_rng(seed).normal(scale=scale, size=(1, 6, vocabulary))
    return mx.array(drawn.astype(np.float32))


def test_where_every_token_is_kept_it_is_the_divergence() -> None:
    base, model = logits(0, LIKELIEST), logits(1, LIKELIEST)
    exact = float(divergences(model, log_softmax(base)).mean())
    assert float(divergence_from_known(know(WINDOWS[:1], base), model)) == pytest.approx(
        exact, rel=1e-4
    )


def test_tokens_taken_as_one_make_it_smaller_by_what_is_unknown_of_them() -> None:
    base, model = logits(0, 500), logits(1, 500)
    known = know(WINDOWS[:1], base)
    q, p = (np.exp(np.array(log_softmax(x), np.float64))[0] for x in (base, model))
    lost = 0.0
    for at in range(len(q)):
        rest = np.setdiff1d(np.arange(500), np.array(known.likeliest)[0, at])
        q_rest, p_rest = q[at, rest], p[at, rest]
        within = q_rest * np.log(q_rest / q_rest.sum() * p_rest.sum() / p_rest)
        lost += within.sum() / len(q)
    exact = float(divergences(model, log_softmax(base)).mean())
    found = float(divergence_from_known(known, model))
    assert found == pytest.approx(exact - lost, rel=1e-4)
    assert 0 < found < exact


def test_the_base_itself_has_neither_a_divergence_nor_a_gradient() -> None:
    for scale in (3.0, 100.0):  # the likeliest token takes all
        base = logits(0, 500, scale)
        known = know(WINDOWS[:1], base)
        value, gradient = mx.value_and_grad(lambda x, k=known: divergence_from_known(k, x))(base)
        assert float(value) == pytest.approx(0, abs=1e-6)
        assert float(mx.abs(gradient).max()) < 1e-6


def test_the_loss_keeps_its_value_and_gets_the_gradient_of_the_sum() -> None:
    model = moved()
    layers = find_rank_layers(model)
    remembering = Remembering(model, layers, WINDOWS, weight=0.7, seed=0)
    batch: Any = (WINDOWS[:2], mx.array(3.0))
    known = remembering.window(0)

    def explicit(model: nn.Module) -> mx.array:
        return task(model, *batch)[0] + 0.7 * divergence_from_known(known, model(known.tokens))

    loss = remembering.beside(task)
    (value, tokens), found = nn.value_and_grad(model, loss)(model, *batch, *known)
    assert float(value) == float(task(model, *batch)[0])
    assert int(tokens) == 7
    _, expected = nn.value_and_grad(model, explicit)(model)
    _, without = nn.value_and_grad(model, lambda m: task(m, *batch)[0])(model)
    for i in range(2):
        np.testing.assert_allclose(
            found["layers"][i]["U"], expected["layers"][i]["U"], rtol=1e-4, atol=1e-7
        )
        assert not np.allclose(found["layers"][i]["U"], without["layers"][i]["U"], rtol=1e-2)


def test_what_is_known_is_the_bases_and_the_model_stays_as_it_is() -> None:
    model = moved()
    layers = find_rank_layers(model)
    before = {path: layer.factors() for path, layer in layers.items()}
    known = Remembering(model, layers, WINDOWS, weight=1.0, seed=0).window(0)
    assert model.training
    for path, layer in layers.items():
        assert all(a is b for a, b in zip(layer.factors(), before[path], strict=True))
    for layer in layers.values():
        layer.set_factors(layer.U, mx.zeros_like(layer.S), layer.Vh)
    expected = know(known.tokens, model(known.tokens))
    assert np.array_equal(known.likeliest, expected.likeliest)
    assert np.array_equal(known.log_q, expected.log_q)


def test_a_window_is_a_function_of_the_step_and_none_comes_twice_in_a_round() -> None:
    model = moved()
    layers: dict[str, RankLayer] = find_rank_layers(model)

    def order(seed: int, steps: range) -> list[tuple[int, ...]]:
        made = Remembering(model, layers, WINDOWS, weight=1.0, seed=seed)
        return [tuple(np.array(made.window(step).tokens)[0].tolist()) for step in steps]

    rounds = order(3, range(10))
    assert set(rounds[:5]) == set(rounds[5:]) == {tuple(row) for row in np.array(WINDOWS)}
    assert rounds[:5] != rounds[5:]
    assert order(3, range(4, 7)) == rounds[4:7]
    assert order(4, range(10)) != rounds
