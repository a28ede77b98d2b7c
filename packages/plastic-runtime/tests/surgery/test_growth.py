"""Growth from the factors of the gradient: the same directions, judged on other tokens."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import RankLayer
from plastic_core.testing import repeatable
from plastic_runtime import Gauge, PlasticityManager, attach, gradient_factors
from plastic_runtime.surgery.gradient_factors import GradientFactors
from plastic_runtime.surgery.growth import predicted_decrease, steepest_directions

OUT, INNER, TOKENS = 9, 7, 40


def drawn(rank: int, seed: int, tokens: int = TOKENS) -> tuple[RankLayer, GradientFactors]:
    rng = np.random.default_rng(seed)
    layer = RankLayer(
        *(mx.array(rng.standard_normal(s), mx.float32) for s in ((OUT, rank), rank, (rank, INNER)))
    )
    parts = (rng.standard_normal((tokens, n)).astype(np.float32) for n in (INNER, OUT))
    return layer, GradientFactors(*parts)


class Net(nn.Module):
    """Two layers side by side; only the first can lower the loss."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        mx.random.seed(0)
        self.layers = [nn.Linear(INNER, OUT), nn.Linear(INNER, OUT)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.layers[0](x) + 0.0 * self.layers[1](x)


# Directions


@repeatable
@given(rank=st.integers(0, 4), k=st.integers(0, 3), seed=st.integers(0, 99))
def test_directions_are_those_of_the_dense_gradient(rank: int, k: int, seed: int) -> None:
    layer, passed = drawn(rank, seed)
    found = steepest_directions(layer, passed, k)
    G = passed.dense().astype(np.float64)
    U, Vh = (np.array(a, dtype=np.float64) for a in (layer.U, layer.Vh))
    P = np.eye(OUT) - U @ np.linalg.pinv(U) if rank else np.eye(OUT)
    Q = np.eye(INNER) - np.linalg.pinv(Vh) @ Vh if rank else np.eye(INNER)
    spectrum = np.linalg.svd(P @ G @ Q, compute_uv=False)
    slopes = found.U.T @ G @ found.Vh.T
    slack = 1e-3 * spectrum[0]
    np.testing.assert_allclose(found.U.T @ found.U, np.eye(k), atol=1e-4)
    np.testing.assert_allclose(found.Vh @ found.Vh.T, np.eye(k), atol=1e-4)
    np.testing.assert_allclose(U.T @ found.U, 0, atol=1e-3)
    assert -np.trace(slopes) >= spectrum[:k].sum() - max(k, 1) * slack


def test_fewer_tokens_than_components_leave_free_directions() -> None:
    layer, passed = drawn(1, 0, tokens=2)
    found = steepest_directions(layer, passed, 4)
    np.testing.assert_allclose(found.Vh @ found.Vh.T, np.eye(4), atol=1e-4)


# What growth is worth


def test_noise_promises_less_than_a_signal() -> None:
    rng, layer = np.random.default_rng(0), drawn(0, 0)[0]
    u, v = rng.standard_normal(OUT), rng.standard_normal(INNER)
    X = rng.standard_normal((400, INNER)).astype(np.float32)
    noise = rng.standard_normal((400, OUT)).astype(np.float32)
    signal = (0.5 * np.outer(X @ v, u) + noise).astype(np.float32)
    loud = predicted_decrease(layer, GradientFactors(X, signal), 1)
    quiet = predicted_decrease(layer, GradientFactors(X, noise), 1)
    assert loud > 20 * quiet


def test_the_decrease_of_a_quadratic_is_predicted_to_its_order() -> None:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((2000, INNER)).astype(np.float32)
    target = np.outer(rng.standard_normal(OUT), rng.standard_normal(INNER)) / 4
    noise = rng.standard_normal((2000, OUT))
    # Gaussian log-likelihood of y = W x + noise at W = 0, averaged over tokens.
    residual = X @ target.T + noise
    passed = GradientFactors(X, (-residual / len(X)).astype(np.float32))
    layer = RankLayer(mx.zeros((OUT, 0)), mx.zeros(0), mx.zeros((0, INNER)))
    best = 0.5 * np.linalg.norm(target, 2) ** 2
    assert 0.3 * best < predicted_decrease(layer, passed, 1) < 1.2 * best


def test_a_layer_that_cannot_help_or_grow_scores_nothing() -> None:
    model = Net()
    attach(model, 1)
    x, y = mx.random.normal((64, INNER), key=mx.random.key(1)), mx.ones((64, OUT))
    passed = gradient_factors(model, lambda: mx.square(model(x) - y).mean())
    scores = [predicted_decrease(model.layers[i], passed[f"layers.{i}"], 1) for i in range(2)]
    assert scores[0] > 0
    assert scores[1] == 0
    full = Net()
    attach(full, INNER)
    passed = gradient_factors(full, lambda: mx.square(full(x) - y).mean())
    assert predicted_decrease(full.layers[0], passed["layers.0"], 1) == 0.0


@pytest.mark.parametrize("gauge", [None, Gauge(scale=2.0)])
def test_growing_by_the_manager_changes_nothing_and_then_helps(gauge: Gauge | None) -> None:
    model = Net()
    attach(model, 1, gauge=gauge)
    x, y = mx.random.normal((64, INNER), key=mx.random.key(1)), mx.ones((64, OUT))

    def loss() -> mx.array:
        return mx.square(model(x) - y).mean()

    optimizer = optim.Adam(1e-2)
    manager = PlasticityManager(model, optimizer, loss=loss, score="descent", gauge=gauge)
    before = loss()
    manager.grow("layers.0", 2)
    assert mx.array_equal(loss(), before)
    if gauge is not None:
        np.testing.assert_allclose(np.array(model.layers[0].S)[1:], gauge.weight(3))
    gradient = nn.value_and_grad(model, loss)
    for _ in range(20):
        optimizer.update(model, gradient()[1])
    assert float(loss()) < 0.98 * float(before)


# Bad input


def test_a_gradient_that_is_not_finite_grows_nothing_at_a_plateau() -> None:
    model = Net()
    attach(model, 1)
    manager = PlasticityManager(
        model, loss=lambda: mx.array(float("nan")) * model(mx.ones((2, INNER))).sum(), patience=1
    )
    events = [event for _ in range(20) for event in manager.step(1.0)]
    assert {event.action for event in events} == {"keep"}
    assert "not finite in the layer 'layers.0': no change" in events[0].why
    assert set(manager.ranks().values()) == {1}
    with pytest.raises(ValueError, match="is not finite in the layer"):
        manager.grow("layers.0", 1)


def test_a_layer_at_full_rank_is_not_asked_to_grow_and_refuses() -> None:
    model = Net()
    attach(model, INNER)
    manager = PlasticityManager(model, loss=lambda: model(mx.ones((2, INNER))).sum(), patience=1)
    events = [event for _ in range(20) for event in manager.step(1.0)]
    assert all(event.rank_after <= INNER for event in events)
    assert not [event for event in events if event.action == "grow"]
    with pytest.raises(ValueError, match="must be between 0 and max_rank - rank = "):
        manager.grow("layers.0", INNER)


def test_the_gradient_passes_layers_under_gradient_checkpointing() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.layers = [Net(), Net()]

        def __call__(self, x: mx.array) -> mx.array:
            for block in self.layers:
                run = mx.checkpoint(lambda p, x, block=block: (block.update(p), block(x))[1])
                x = run(block.trainable_parameters(), x)[:, :INNER]
            return x

    model = Stack()
    attach(model, 2, gauge=Gauge())
    x = mx.random.normal((5, INNER), key=mx.random.key(3))
    found = gradient_factors(model, lambda: mx.square(model(x)).sum())
    assert len(found) == 4
    assert all(np.abs(own.dense()).max() > 0 for p, own in found.items() if p.endswith("layers.0"))
