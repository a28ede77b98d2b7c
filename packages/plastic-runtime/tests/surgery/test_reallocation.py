"""What components are worth, and what a budget does with them: on real layers."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from plastic_core import RankLayer
from plastic_core.factors import as_arrays
from plastic_runtime import (
    ByteCount,
    Gauge,
    PlasticityManager,
    Schedule,
    attach,
    find_rank_layers,
    gradient_factors,
)
from plastic_runtime.measure import intercepted
from plastic_runtime.surgery.loss_components import loss_components
from plastic_runtime.surgery.ranks import shrink_along
from plastic_runtime.surgery.rewriting import regauge

DIMS, RANK = 12, 4
COMPONENT = 4 * (2 * DIMS + 1)
GAUGE = Gauge(scale=3.0)

MAKES: dict[str, Callable[[], optim.Optimizer]] = {
    "Adam": lambda: optim.Adam(1e-2),
    "AdamW": lambda: optim.AdamW(1e-2),
    "SGD": lambda: optim.SGD(1e-2, momentum=0.9),
    "Lion": lambda: optim.Lion(1e-3),
    "Muon": lambda: optim.Muon(1e-2),
    "RMSprop": lambda: optim.RMSprop(1e-3),
    "AdaDelta": lambda: optim.AdaDelta(1.0),
    "Adafactor": lambda: optim.Adafactor(1e-2, relative_step=False, beta_1=0.9),
    "MultiOptimizer": lambda: optim.MultiOptimizer(
        [optim.Muon(1e-2), optim.AdamW(1e-2)], [lambda name, array: array.ndim == 2]
    ),
}


class Net(nn.Module):
    """Two numbered layers that share nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        mx.random.seed(3)
        self.layers = [nn.Linear(DIMS, DIMS), nn.Linear(DIMS, DIMS)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.layers[1](mx.tanh(self.layers[0](x)))


class Run:
    """A net with a plastic part, its optimizer and its probe."""

    def __init__(self, make: Callable[[], optim.Optimizer] = MAKES["Adam"], rank: int = RANK):
        self.model, self.optimizer = Net(), make()
        attach(self.model, rank, gauge=GAUGE)
        self.x = mx.random.normal((30, DIMS), key=mx.random.key(1))
        self.target = mx.random.normal((30, DIMS), key=mx.random.key(2))

    def loss(self) -> mx.array:
        return mx.square(self.model(self.x) - self.target).mean()

    def train(self, steps: int = 5) -> float:
        gradient = nn.value_and_grad(self.model, self.loss)
        for _ in range(steps):
            value, grads = gradient()
            self.optimizer.update(self.model, grads)
            mx.eval(self.model.parameters(), self.optimizer.state)
        return float(value)

    def manage(self, **options: object) -> PlasticityManager:
        return PlasticityManager(
            self.model,
            self.optimizer,
            loss=self.loss,
            gauge=GAUGE,
            **options,  # type: ignore[arg-type]
        )

    @property
    def layer(self) -> RankLayer:
        layer: RankLayer = self.model.layers[0]
        return layer


def plastic(layer: RankLayer) -> np.ndarray:
    U, S, Vh = as_arrays(layer.factors())
    return (U.astype(np.float64) * S) @ Vh


def close(left: np.ndarray, right: np.ndarray) -> None:
    bound = 100 * np.finfo(np.float32).eps * max(np.abs(right).max(), 1e-30)
    np.testing.assert_allclose(left, right, atol=bound)


# Gradients as factors


def dense_gradient(model: nn.Module, path: str, loss: Callable[[], mx.array]) -> mx.array:
    """``dL/dW`` of one layer, by differentiating a zero change of its weight."""
    layer = find_rank_layers(model)[path]

    def value(change: mx.array) -> mx.array:
        def around(_: str, call: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
            return call(x) + x @ change.T

        with intercepted({path: layer}, around):
            return loss()

    gradient: mx.array = mx.grad(value)(mx.zeros(layer.shape))
    return gradient


def test_the_factors_give_the_dense_gradient_of_every_layer() -> None:
    run = Run()
    run.train()
    factors = gradient_factors(run.model, run.loss)
    assert sorted(factors) == ["layers.0", "layers.1"]
    for path, passed in factors.items():
        assert passed.inputs.shape == passed.gradients.shape == (30, DIMS)
        close(passed.dense(), np.array(dense_gradient(run.model, path, run.loss)))


def test_measuring_leaves_the_model_as_it_was() -> None:
    run = Run()
    run.train()
    before = [np.array(a).tobytes() for _, a in tree_flatten(run.model.parameters())]
    gradient_factors(run.model, run.loss)
    assert [np.array(a).tobytes() for _, a in tree_flatten(run.model.parameters())] == before
    assert type(run.layer) is RankLayer


# Components


def test_components_add_up_to_the_plastic_part_and_are_orthonormal_to_the_loss() -> None:
    run = Run()
    run.train()
    passed = gradient_factors(run.model, run.loss)["layers.0"]
    U, S, Vh = (a.astype(np.float64) for a in loss_components(run.layer, passed))
    close((U * S) @ Vh, plastic(run.layer))
    assert (np.diff(S) <= 0).all()
    X, Y, tokens = passed.inputs.astype(float), passed.gradients.astype(float), 30
    R, C = X.T @ X / tokens, tokens * Y.T @ Y
    R += 0.03 * np.trace(R) / DIMS * np.eye(DIMS)
    C += 0.03 * np.trace(C) / DIMS * np.eye(DIMS)
    np.testing.assert_allclose(U.T @ C @ U, np.eye(RANK), atol=1e-3)
    np.testing.assert_allclose(Vh @ R @ Vh.T, np.eye(RANK), atol=1e-3)


def test_no_other_part_of_that_rank_is_predicted_to_lose_less() -> None:
    run = Run()
    run.train()
    passed = gradient_factors(run.model, run.loss)["layers.0"]
    X, Y, tokens = passed.inputs.astype(float), passed.gradients.astype(float), 30
    roots = []
    for gram in (tokens * Y.T @ Y, X.T @ X / tokens):
        gram = gram + 0.03 * np.trace(gram) / DIMS * np.eye(DIMS)
        energies, Q = np.linalg.eigh(gram)
        roots.append((Q * np.sqrt(energies)) @ Q.T)
    spectrum = np.linalg.svd(roots[0] @ plastic(run.layer) @ roots[1], compute_uv=False)[:RANK]
    np.testing.assert_allclose(loss_components(run.layer, passed)[1], spectrum, rtol=1e-3)


def test_a_plastic_part_that_has_not_trained_is_worth_nothing() -> None:
    run = Run()
    passed = gradient_factors(run.model, run.loss)["layers.0"]
    U, S, Vh = loss_components(run.layer, passed)
    assert np.isfinite(U).all()
    assert np.isfinite(Vh).all()
    np.testing.assert_allclose((U * S) @ Vh, 0, atol=1e-12)


# Surgery


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_cut_keeps_the_sum_and_the_state_fits(make: Callable[[], optim.Optimizer]) -> None:
    run = Run(make)
    run.train()
    whole = plastic(run.layer)
    manager = run.manage()
    components = loss_components(run.layer, gradient_factors(run.model, run.loss)["layers.0"])
    ids = shrink_along(
        run.layer,
        components,
        2,
        gauge=GAUGE,
        path="layers.0",
        optimizer=run.optimizer,
        sleep=manager.sleep_dict,
    )
    assert (run.layer.rank, len(ids)) == (2, RANK - 2)
    np.testing.assert_allclose(np.array(run.layer.S), GAUGE.weight(2))
    asleep = sum(
        float(p.S) * np.outer(np.array(p.U), np.array(p.Vh))
        for p in (manager.sleep_dict.get(i) for i in ids)
    )
    np.testing.assert_allclose(plastic(run.layer) + asleep, whole, atol=1e-4 * abs(whole).max())
    run.train(2)
    assert np.isfinite(float(run.loss()))
    manager.wake("layers.0", ids)
    assert run.layer.rank == RANK
    run.train(2)


def test_a_gauge_changes_no_weight_and_first_moments_follow_exactly() -> None:
    run = Run(MAKES["SGD"])
    run.train(3)
    gradient = nn.value_and_grad(run.model, run.loss)()[1]["layers"][0]
    run.optimizer.state["layers"][0].update({n: {"v": gradient[n]} for n in ("U", "S", "Vh")})
    before = plastic(run.layer)
    other = Gauge(scale=7.0, length=2.0)
    regauge(run.layer, other, path="layers.0", optimizer=run.optimizer)
    close(plastic(run.layer), before)
    after = nn.value_and_grad(run.model, run.loss)()[1]["layers"][0]
    for name in ("U", "Vh"):
        turned = np.array(run.optimizer.state["layers"][0][name]["v"])
        wanted = np.array(after[name])
        np.testing.assert_allclose(turned, wanted, atol=2e-3 * abs(wanted).max())


# Under a budget


def test_a_budget_is_met_by_what_is_worth_least() -> None:
    run = Run()
    run.train()
    manager = run.manage()
    events = manager.reallocate(5 * COMPONENT)
    assert manager.bytes_awake == 5 * COMPONENT
    assert manager.bytes_asleep == 3 * COMPONENT
    assert {event.action for event in events} == {"shrink"}
    run.train(3)


def test_a_sleeper_that_would_help_wakes_and_one_that_would_not_sleeps_on() -> None:
    run = Run()
    run.train(30)
    manager = run.manage()
    manager.shrink("layers.0", 1)  # far below what training had found
    asleep = manager.sleep_dict.ids("layers.0")
    events = manager.reallocate(8 * COMPONENT)
    assert [event.action for event in events] == ["wake"]
    assert run.layer.rank > 1
    left = manager.sleep_dict.ids("layers.0")
    assert set(left) < set(asleep)


def test_nothing_is_priced_where_all_fits_and_nothing_sleeps() -> None:
    run = Run()
    run.train()
    calls: list[int] = []

    def counted() -> mx.array:
        calls.append(1)
        return run.loss()

    manager = PlasticityManager(run.model, run.optimizer, loss=counted)
    for _ in range(2):
        before = [np.array(part) for part in run.layer.factors()]
        assert manager.reallocate(manager.bytes_awake) == []
        for part, was in zip(run.layer.factors(), before, strict=True):
            assert np.array_equal(np.array(part), was)
    assert calls == []
    manager.shrink("layers.0", 1)
    manager.reallocate(manager.bytes_awake)  # fits as well, but what sleeps may be worth more
    assert len(calls) > 0


def count_of(run: Run, **numbers: int) -> ByteCount:
    layers = find_rank_layers(run.model)
    return ByteCount(dict.fromkeys(layers, COMPONENT), one_rank=True, **numbers)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_bytes_are_those_that_the_count_says(make: Callable[[], optim.Optimizer]) -> None:
    run = Run(make)
    run.train()
    count = count_of(run, fixed=10)
    manager = run.manage(count=count)
    assert manager.bytes_awake == 10 + 2 * RANK * COMPONENT
    events = manager.reallocate(10 + 5 * COMPONENT)
    assert 10 + 4 * COMPONENT <= manager.bytes_awake <= 10 + 5 * COMPONENT
    assert manager.bytes_awake == count(manager.ranks()) == events[-1].bytes_awake
    if isinstance(run.optimizer, optim.Muon | optim.Adafactor | optim.MultiOptimizer):
        with pytest.raises(ValueError, match="which one component per layer takes"):
            manager.reallocate(10 + COMPONENT)
    else:
        manager.reallocate(10 + COMPONENT)
        assert sorted(manager.ranks().values()) == [0, 1]
    run.train(3)


def test_growth_and_waking_stay_below_the_counted_ceiling() -> None:
    run = Run()
    run.train()
    first, second = find_rank_layers(run.model)
    ceiling = 2 * 5 * COMPONENT
    manager = run.manage(count=count_of(run), max_bytes=ceiling)
    manager.grow(first, 1)
    assert manager.bytes_awake == ceiling
    with pytest.raises(ValueError, match=f"`k` must be at most 1 under {ceiling} bytes, got 2"):
        manager.grow(second, 2)
    manager.grow(second, 1)
    assert manager.bytes_awake == ceiling
    manager.shrink(first, 1)
    manager.wake(first)
    assert manager.bytes_awake == ceiling


def test_a_state_of_another_count_is_refused() -> None:
    run = Run()
    manager = run.manage(count=count_of(run), max_bytes=8 * COMPONENT)
    other = run.manage(count=count_of(run, fixed=1), max_bytes=9 * COMPONENT)
    with pytest.raises(ValueError, match=r"other options: count was .* max_bytes was"):
        other.load_state(manager.state())


def test_a_last_reallocation_that_found_no_price_is_made_up_for() -> None:
    run = Run()
    run.train()
    manager = run.manage(schedule=Schedule(8 * COMPONENT, 4 * COMPONENT, begin=2, end=2, every=2))
    target, run.target = run.target, run.target * float("nan")
    (event,) = manager.advance(2)
    assert event.action == "keep"
    run.target = target
    assert {event.action for event in manager.advance(3)} == {"shrink"}
    assert manager.bytes_awake == 4 * COMPONENT
    assert manager.advance(4) == []


def test_a_schedule_is_followed_once_per_step_and_survives_saving() -> None:
    run = Run()
    schedule = Schedule(8 * COMPONENT, 4 * COMPONENT, begin=2, end=6, every=2)
    manager = run.manage(schedule=schedule)
    awake = []
    for step in range(1, 9):
        run.train(1)
        manager.advance(step)
        assert manager.advance(step) == []
        awake.append(manager.bytes_awake // COMPONENT)
    assert awake == [8, 8, 8, 4, 4, 4, 4, 4]
    assert [manager.step(1.0) for _ in range(20)] == [[]] * 20  # the schedule alone decides
    other = run.manage(schedule=schedule)
    other.load_state(manager.state())
    assert other.advance(6) == []


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    run = Run()
    run.train()
    manager = run.manage()
    run.target = run.target * float("nan")
    (event,) = manager.reallocate(5 * COMPONENT)
    assert event.action == "keep"
    assert event.why.endswith("is not finite in the layer 'layers.0': no change")
    assert set(manager.ranks().values()) == {RANK}


@pytest.mark.filterwarnings("error")
def test_a_gradient_that_is_zero_in_every_layer_changes_nothing() -> None:
    run = Run()
    run.train()
    manager = run.manage()
    run.target = run.model(run.x)  # an exact fit
    (event,) = manager.reallocate(5 * COMPONENT)
    assert event.action == "keep"
    assert event.why == (
        "the probe's gradient is zero in every layer, so nothing has a price: no change"
    )
    assert set(manager.ranks().values()) == {RANK}


@pytest.mark.filterwarnings("error")
def test_a_layer_that_no_gradient_enters_is_cut_first() -> None:
    run = Run()
    run.train()
    inner, outer = run.model.layers
    weight = plastic(inner)
    manager = PlasticityManager(
        nn.Sequential(inner, outer),  # type: ignore[no-untyped-call]
        loss=lambda: (0.0 * inner(run.x)).sum() + outer(run.x).mean(),
        gauge=GAUGE,
    )
    manager.reallocate(5 * COMPONENT)
    assert (inner.rank, outer.rank) == (1, 4)
    assert np.isfinite(plastic(inner)).all()
    assert np.linalg.norm(plastic(inner)) <= 1.01 * np.linalg.norm(weight)


@pytest.mark.parametrize("value", [1.0, np.float32(1.0), mx.ones(3), mx.ones((1, 1)), None])
def test_a_loss_that_is_no_scalar_array_is_refused(value: object) -> None:
    run = Run()
    for score in ("gradient", "relevance", "descent"):
        manager = PlasticityManager(
            run.model,
            loss=lambda: value,  # type: ignore[arg-type, return-value]
            score=score,
            window=1,
            patience=1,
            cooldown=0,
        )
        manager.step(1.0)
        with pytest.raises(TypeError, match="`loss` must return a scalar"):
            manager.step(1.0)
        with pytest.raises(TypeError, match="`loss` must return a scalar"):
            manager.reallocate(5 * COMPONENT)
        assert set(manager.ranks().values()) == {RANK}


def test_what_cannot_be_followed_is_refused() -> None:
    run = Run()
    tight = Schedule(8 * COMPONENT, 2 * COMPONENT - 1, begin=1, end=1, every=1)
    with pytest.raises(ValueError, match=f"must end at {2 * COMPONENT} bytes or more"):
        run.manage(schedule=tight)
    with pytest.raises(ValueError, match="`loss` must be given with a `schedule`"):
        PlasticityManager(run.model, schedule=tight)
    with pytest.raises(ValueError, match="`loss` must be given to price components"):
        PlasticityManager(run.model).reallocate(5 * COMPONENT)


@pytest.mark.parametrize("numbers", [{"scale": 0.0}, {"length": -1.0}, {"scale": float("nan")}])
def test_a_gauge_needs_positive_numbers(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Gauge(**numbers)
