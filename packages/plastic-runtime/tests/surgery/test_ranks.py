import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mlx.utils import tree_flatten
from numpy.typing import NDArray
from plastic_core import Factors, RankLayer
from plastic_core.testing import (
    bits,
    matrix_from_spectrum,
    parameters,
    repeatable,
    spectra,
    tolerance,
)
from plastic_runtime import CautiousAdamW
from plastic_runtime.sleep.sleep_dict import SleepDict
from plastic_runtime.surgery.ranks import extend, grow, park, shrink_to, soft_threshold, wake
from plastic_runtime.surgery.rewriting import rebalance

OUT, INNER, RANK = 6, 5, 3
PATH = "layers.0"

Make = Callable[[], optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "Adam": lambda: optim.Adam(1e-2, bias_correction=True),
    "AdamW": lambda: optim.AdamW(1e-2),
    "CautiousAdamW": lambda: CautiousAdamW(1e-2),
    "Adamax": lambda: optim.Adamax(1e-2),
    "Adagrad": lambda: optim.Adagrad(1e-2),
    "SGD": lambda: optim.SGD(1e-2, momentum=0.9),
    "Lion": lambda: optim.Lion(1e-3),
    "Muon": lambda: optim.Muon(1e-2),
    "RMSprop": lambda: optim.RMSprop(1e-2),
    "AdaDelta": lambda: optim.AdaDelta(1.0),
    "Adafactor": lambda: optim.Adafactor(1e-2, relative_step=False, beta_1=0.9),
    "MultiOptimizer": lambda: optim.MultiOptimizer(
        [optim.Muon(1e-2), optim.AdamW(1e-2)], [lambda name, array: array.ndim == 2]
    ),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


class Stack(nn.Module):
    """Two layers, the first of the given rank."""

    def __init__(self, rank: int = RANK) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = [random_layer(OUT, INNER, rank, 0), random_layer(3, OUT, 2, 1)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.layers[1](mx.tanh(self.layers[0](x)))


def random_layer(out: int, inner: int, rank: int, seed: int) -> RankLayer:
    rng = np.random.default_rng(seed)
    shapes = (out, rank), (rank,), (rank, inner)
    return RankLayer(*(mx.array(rng.standard_normal(shape), dtype=mx.float32) for shape in shapes))


def probe_loss(model: Stack) -> mx.array:
    rng = np.random.default_rng(2)
    x, y = (mx.array(rng.standard_normal((7, n)), dtype=mx.float32) for n in (INNER, 3))
    return mx.square(model(x) - y).mean()


def train(model: Stack, optimizer: optim.Optimizer, steps: int = 2) -> None:
    step = nn.value_and_grad(model, probe_loss)
    for _ in range(steps):
        loss, gradients = step(model)
        optimizer.update(model, gradients)
        mx.eval(loss, parameters(model), optimizer.state)
        assert np.isfinite(float(loss))


def trained(make: Make, rank: int = RANK) -> tuple[Stack, optim.Optimizer]:
    model, optimizer = Stack(rank), make()
    train(model, optimizer)
    return model, optimizer


def initialised(optimizer: optim.Optimizer, model: nn.Module) -> optim.Optimizer:
    optimizer.init(model.trainable_parameters())  # type: ignore[no-untyped-call]
    return optimizer


def leaves(optimizer: optim.Optimizer) -> dict[str, mx.array]:
    return dict(tree_flatten(optimizer.state))


def assert_state_fits(model: Stack, optimizer: optim.Optimizer, make: Make) -> None:
    """The optimizer's keys, shapes and dtypes are those it would give this model itself."""
    fresh = initialised(make(), model)
    wanted = {name: (array.shape, array.dtype) for name, array in leaves(fresh).items()}
    assert {n: (a.shape, a.dtype) for n, a in leaves(optimizer).items()} == wanted


def moments_of(optimizer: optim.Optimizer) -> dict[str, mx.array]:
    """The leaves of the first layer that have one entry per component, by name."""
    across = ("U.exp_avg_sq_row", "Vh.exp_avg_sq_col")
    return {
        name.split(f"{PATH}.")[1]: array
        for name, array in leaves(optimizer).items()
        if PATH in name and not name.endswith(across)
    }


def picked(name: str, array: mx.array, order: Sequence[int]) -> NDArray[np.float32]:
    """Components of a factor or of one of its leaves, chosen with NumPy's own indexing."""
    return np.take(np.array(array), order, axis=array.ndim - 1 if name.startswith("U") else 0)


def snapshot(model: Stack, optimizer: optim.Optimizer) -> dict[str, bytes]:
    tree = parameters(model) | leaves(optimizer)
    return {name: bits(array.reshape(-1)) for name, array in tree.items()}


@each_optimizer
def test_training_goes_on_after_every_change_of_rank(make: Make) -> None:
    model, optimizer = trained(make)
    layer, sleep = model.layers[0], SleepDict()
    change: dict[str, Any] = {"path": PATH, "optimizer": optimizer}
    grow(layer, 2, key=mx.random.key(0), **change)
    assert_state_fits(model, optimizer, make)
    train(model, optimizer)
    shrink_to(layer, sleep=sleep, rank=1, **change)
    assert_state_fits(model, optimizer, make)
    train(model, optimizer)
    assert (layer.U.shape, layer.S.shape, layer.Vh.shape) == ((OUT, 1), (1,), (1, INNER))
    rebalance(layer, **change)
    wake(layer, sleep.ids(PATH), sleep=sleep, **change)
    assert_state_fits(model, optimizer, make)
    train(model, optimizer)
    assert layer.rank == 5


NEVER_EMPTY = ("Muon", "Adafactor", "MultiOptimizer")


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in NEVER_EMPTY])
def test_a_layer_trains_at_rank_zero_and_grows_from_it(name: str) -> None:
    make = OPTIMIZERS[name]
    model, optimizer = trained(make)
    layer, sleep = model.layers[0], SleepDict()
    change: dict[str, Any] = {"path": PATH, "optimizer": optimizer}
    shrink_to(layer, sleep=sleep, rank=0, **change)
    train(model, optimizer)
    assert layer.rank == 0
    grow(layer, 1, key=mx.random.key(0), **change)
    wake(layer, sleep.ids(PATH), sleep=sleep, **change)
    train(model, optimizer)
    assert_state_fits(model, optimizer, make)
    assert layer.rank == 1 + RANK
    assert all(bool(mx.isfinite(a).all()) for a in leaves(optimizer).values())


@pytest.mark.parametrize("name", NEVER_EMPTY)
@pytest.mark.parametrize("steps", [0, 1])
def test_rank_zero_is_refused_where_the_optimizer_cannot_step_on_it(name: str, steps: int) -> None:
    model, optimizer, sleep = Stack(), OPTIMIZERS[name](), SleepDict()
    train(model, optimizer, steps)
    before = snapshot(model, optimizer)
    change: dict[str, Any] = {"path": PATH, "optimizer": optimizer, "sleep": sleep}
    for refused in (
        partial(shrink_to, model.layers[0], rank=0, **change),
        partial(park, model.layers[0], range(RANK), **change),
    ):
        with pytest.raises(ValueError, match=r"at least 1 under the optimizer (Muon|Adafactor)"):
            refused()
    assert snapshot(model, optimizer) == before
    assert len(sleep) == 0


def test_a_threshold_that_would_leave_nothing_to_muon_parks_nothing() -> None:
    model, optimizer = trained(OPTIMIZERS["Muon"])
    sleep = SleepDict()
    with pytest.raises(ValueError, match="at least 1 under the optimizer Muon"):
        soft_threshold(model.layers[0], path=PATH, optimizer=optimizer, sleep=sleep, tau=1e6)
    assert model.layers[0].rank == RANK
    assert len(sleep) == 0


def test_adafactor_starts_from_zero_in_a_layer_made_without_components() -> None:
    model, make = Stack(rank=0), OPTIMIZERS["Adafactor"]
    optimizer = initialised(make(), model)
    for leaf in ("U.exp_avg_sq_row", "Vh.exp_avg_sq_col"):
        poisoned = leaves(optimizer)[f"{PATH}.{leaf}"] * mx.array(np.nan)  # as a step leaves it
        set_leaf(optimizer, f"{PATH}.{leaf}", poisoned)
    grow(model.layers[0], 2, path=PATH, optimizer=optimizer, key=mx.random.key(0))
    train(model, optimizer)
    assert_state_fits(model, optimizer, make)
    assert all(bool(mx.isfinite(a).all()) for a in leaves(optimizer).values())


@each_optimizer
def test_the_first_step_after_growing_is_that_of_a_layer_built_at_this_rank(make: Make) -> None:
    model = Stack()
    optimizer = initialised(make(), model)
    grow(model.layers[0], 2, path=PATH, optimizer=optimizer, key=mx.random.key(0))
    built, fresh = Stack(), make()
    built.layers[0] = RankLayer(*model.layers[0].factors())
    train(model, optimizer, steps=1)
    train(built, fresh, steps=1)
    assert snapshot(model, optimizer) == snapshot(built, fresh)


@each_optimizer
def test_a_later_step_after_growing_is_that_of_a_layer_whose_new_moments_are_zero(
    make: Make,
) -> None:
    model, optimizer = trained(make)
    before = leaves(optimizer)
    grow(model.layers[0], 2, path=PATH, optimizer=optimizer, key=mx.random.key(0))
    built = Stack()
    built.layers = [RankLayer(*layer.factors()) for layer in model.layers]
    fresh = initialised(make(), built)
    for name, array in leaves(fresh).items():
        set_leaf(fresh, name, padded(name, before[name], array.shape))
    train(model, optimizer, steps=1)
    train(built, fresh, steps=1)
    for name, other in parameters(built).items():
        limit = tolerance(np.array(other).reshape(1, -1), other.shape)
        assert np.abs(np.array(parameters(model)[name] - other)).max() <= limit, name


def padded(name: str, old: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The old leaf with zeros for new components; the mean across them counts the zeros."""
    if (
        old.shape == shape
        and PATH in name
        and name.endswith(("U.exp_avg_sq_row", "Vh.exp_avg_sq_col"))
    ):
        return old * (RANK / (RANK + 2))
    return mx.pad(old, [(0, new - size) for size, new in zip(old.shape, shape, strict=True)])


def set_leaf(optimizer: optim.Optimizer, name: str, value: mx.array) -> None:
    *parents, last = name.split(".")
    node: Any = optimizer.state
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[last] = value


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_components_that_can_train_at_once_begin_with_the_mean_of_the_squares(
    weight: float,
) -> None:
    model, optimizer = trained(lambda: optim.Adam(1e-2))
    layer, before = model.layers[0], moments_of(optimizer)
    sides = mx.zeros((OUT, 2)), mx.full((2,), weight), mx.eye(2, INNER)
    extend(layer, Factors(*sides), path=PATH, optimizer=optimizer)
    for name, array in moments_of(optimizer).items():
        old, new = (picked(name, array, part) for part in (range(RANK), range(RANK, RANK + 2)))
        assert bits(before[name]) == old.tobytes(), name
        axis = next((i for i, n in enumerate(old.shape) if n != new.shape[i]), 0)
        start = old.mean(axis, keepdims=True) if weight and name.endswith(".v") else 0.0
        np.testing.assert_allclose(new, np.broadcast_to(start, new.shape), rtol=1e-6)


@each_optimizer
def test_parking_and_waking_keeps_the_bits_of_factors_and_moments(make: Make) -> None:
    model, optimizer = trained(make, rank=4)
    layer, sleep = model.layers[0], SleepDict()
    factors, moments = layer.factors(), moments_of(optimizer)
    change: dict[str, Any] = {"path": PATH, "optimizer": optimizer, "sleep": sleep}
    ids = park(layer, [3, 1], **change)
    wake(layer, ids, **change)
    order = [0, 2, 3, 1]
    for name, array in layer.factors()._asdict().items():
        assert bits(array) == picked(name, getattr(factors, name), order).tobytes()
    for name, array in moments_of(optimizer).items():
        assert bits(array) == picked(name, moments[name], order).tobytes(), name
    assert len(sleep) == 0


@each_optimizer
def test_growing_keeps_the_function_and_the_moments_that_were_there(make: Make) -> None:
    model, optimizer = trained(make)
    x = mx.ones((2, INNER))
    y, moments = model(x), moments_of(optimizer)
    grow(model.layers[0], 2, path=PATH, optimizer=optimizer, key=mx.random.key(0))
    assert bits(model(x)) == bits(y)
    for name, array in moments_of(optimizer).items():
        assert bits(moments[name]) == picked(name, array, range(RANK)).tobytes(), name
        assert not picked(name, array, range(RANK, RANK + 2)).any(), name


def mixed_layer(s: NDArray[np.float64], seed: int) -> tuple[RankLayer, NDArray[np.float64]]:
    """A layer of the given spectrum whose factors are far from orthonormal."""
    rng = np.random.default_rng(seed)
    A, r = matrix_from_spectrum(s, OUT, INNER, seed), len(s)
    U, S, Vh = (a[..., :r] if i < 2 else a[:r] for i, a in enumerate(np.linalg.svd(A)))
    mix = matrix_from_spectrum(rng.uniform(1, 3, r), r, r, seed + 1)
    right = np.linalg.inv(mix) @ np.diag(S) @ Vh
    return RankLayer(*(mx.array(a.astype(np.float32)) for a in (U @ mix, np.ones(r), right))), A


@repeatable
@given(spectra(max_size=5), st.integers(0, 5), st.integers(0, 99))
def test_parking_by_rank_leaves_the_best_approximation_and_reports_its_error(
    s: NDArray[np.float64], rank: int, seed: int
) -> None:
    layer, A = mixed_layer(s, seed)
    rank = min(rank, len(s))
    sleep = SleepDict()
    error = shrink_to(layer, path="", optimizer=None, sleep=sleep, rank=rank)
    limit = 30 * tolerance(s, A.shape)  # the factors' condition number, at most 9, enters twice
    left = np.linalg.norm(A - np.array(layer.factors().dense()))
    tail = np.linalg.norm(s[rank:])
    assert abs(error - tail) <= limit
    assert abs(left - tail) <= limit
    assert len(sleep) == len(s) - rank


@repeatable
@given(spectra(max_size=5), st.floats(0, 1), st.integers(0, 99))
def test_parking_by_threshold_shrinks_the_spectrum_and_reports_its_error(
    s: NDArray[np.float64], tau: float, seed: int
) -> None:
    layer, A = mixed_layer(s, seed)
    error = soft_threshold(layer, path="", optimizer=None, sleep=SleepDict(), tau=tau)
    limit = 30 * tolerance(s, A.shape)
    assert abs(error - np.linalg.norm(np.minimum(s, tau))) <= limit
    left = np.linalg.svd(np.array(layer.factors().dense()), compute_uv=False)
    assert np.abs(left[: len(s)] - np.maximum(s - tau, 0)).max() <= limit


def test_what_parking_takes_away_waking_gives_back() -> None:
    layer, A = mixed_layer(np.array([3.0, 2.0, 1.0, 0.5]), 0)
    sleep = SleepDict()
    shrink_to(layer, path=PATH, optimizer=None, sleep=sleep, rank=1)
    shrink_to(layer, path=PATH, optimizer=None, sleep=sleep, rank=0)
    wake(layer, sleep.ids(PATH), path=PATH, optimizer=None, sleep=sleep)
    error = np.abs(np.array(layer.factors().dense()) - A).max()
    assert error <= 30 * tolerance(3.0, A.shape)


def test_rebalancing_takes_momentum_where_the_gradient_goes() -> None:
    model = Stack()
    layer, optimizer = model.layers[0], initialised(optim.SGD(0.1, momentum=0.9), model)
    gradient = partial(nn.value_and_grad(model, probe_loss), model)
    before = gradient()[1]["layers"][0]
    for name in ("U", "S", "Vh"):
        optimizer.state["layers"][0][name]["v"] = before[name]
    rebalance(layer, path=PATH, optimizer=optimizer)
    after = gradient()[1]["layers"][0]
    for name in ("U", "Vh"):
        wanted, momentum = np.array(after[name]), np.array(moments_of(optimizer)[f"{name}.v"])
        scale = float(mx.abs(before[name]).max()) * float(mx.abs(layer.S).max())
        assert np.abs(momentum - wanted).max() <= 10 * tolerance(scale, (OUT, INNER))


def test_rebalancing_orthonormal_factors_in_another_order_reorders_all_moments() -> None:
    s = np.array([1.0, 3.0, 2.0])
    Q = np.eye(OUT, 3, dtype=np.float32)
    model = Stack()
    layer = model.layers[0] = RankLayer(
        mx.array(Q), mx.array(s.astype(np.float32)), mx.array(Q[:INNER].T)
    )
    optimizer = initialised(optim.Adam(0.1), model)
    rng = np.random.default_rng(0)
    for name in ("U", "S", "Vh"):
        for leaf in "mv":
            shape = getattr(layer, name).shape
            value = np.abs(rng.standard_normal(shape)).astype(np.float32)
            optimizer.state["layers"][0][name][leaf] = mx.array(value)
    moments = moments_of(optimizer)
    rebalance(layer, path=PATH, optimizer=optimizer)
    for name, array in moments_of(optimizer).items():
        wanted = picked(name, moments[name], [1, 2, 0])
        # U and Vh may both turn their signs, and first moments turn with them.
        assert np.abs(np.abs(np.array(array)) - wanted).max() <= tolerance(3.0, (OUT, 3)), name


def test_a_compiled_step_goes_on_after_every_change() -> None:
    def run(compiled: bool) -> list[float]:
        layer, optimizer = random_layer(OUT, INNER, RANK, 0), optim.SGD(1e-2, momentum=0.9)
        value_and_grad = nn.value_and_grad(layer, lambda: mx.square(layer.weight - 1).mean())
        initialised(optimizer, layer)

        def step() -> mx.array:
            loss: mx.array
            loss, gradients = value_and_grad()
            optimizer.update(layer, gradients)
            return loss

        state = [layer.state, optimizer.state]
        if compiled:
            step = mx.compile(step, inputs=state, outputs=state)
        sleep = SleepDict()
        change: dict[str, Any] = {"path": "", "optimizer": optimizer}
        losses = [float(step()), float(step())]
        grow(layer, 2, key=mx.random.key(0), **change)
        losses += [float(step()), float(step())]
        shrink_to(layer, rank=1, sleep=sleep, **change)
        losses += [float(step()), float(step())]
        wake(layer, sleep.ids(""), sleep=sleep, **change)
        losses += [float(step()), float(step())]
        assert layer.rank == RANK + 2
        return losses

    compiled, plain = run(True), run(False)
    assert np.allclose(compiled, plain, rtol=0, atol=10 * tolerance(max(plain), (OUT, INNER)))
    assert len(set(compiled)) == len(compiled)


class Odd(optim.Optimizer):
    """Keeps something of a shape of its own."""

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape = shape

    def init_single(self, parameter: mx.array, state: dict[str, mx.array]) -> None:
        state["history"] = mx.zeros(self.shape or parameter.shape)


def change_every_way(
    layer: RankLayer, optimizer: optim.Optimizer, sleep: SleepDict
) -> Iterator[Callable[[], object]]:
    change: dict[str, Any] = {"path": PATH, "optimizer": optimizer}
    ids = sleep.ids(PATH)
    yield partial(grow, layer, 1, key=mx.random.key(0), **change)
    yield partial(rebalance, layer, **change)
    yield partial(shrink_to, layer, rank=1, sleep=sleep, **change)
    yield partial(soft_threshold, layer, tau=0.1, sleep=sleep, **change)
    yield partial(park, layer, [0], sleep=sleep, **change)
    yield partial(wake, layer, ids, sleep=sleep, **change)


def test_state_of_an_unknown_shape_is_refused_by_name_and_nothing_changes() -> None:
    model, sleep = Stack(), SleepDict()
    park(model.layers[0], [0], path=PATH, optimizer=None, sleep=sleep)
    optimizer = initialised(Odd((7,)), model)
    before = snapshot(model, optimizer)
    for change in change_every_way(model.layers[0], optimizer, sleep):
        with pytest.raises(TypeError, match=r"`optimizer` Odd keeps 'history' of shape \(7,\)"):
            change()
    assert snapshot(model, optimizer) == before
    assert len(sleep) == 1


def test_an_unknown_optimizer_may_grow_but_not_turn_its_state() -> None:
    model, sleep = Stack(), SleepDict()
    optimizer = initialised(Odd(None), model)
    grow(model.layers[0], 1, path=PATH, optimizer=optimizer, key=mx.random.key(0))
    before = snapshot(model, optimizer)
    with pytest.raises(TypeError, match=r"`optimizer` Odd keeps 'history'.*use one of AdaDelta"):
        shrink_to(model.layers[0], path=PATH, optimizer=optimizer, sleep=sleep, rank=1)
    assert snapshot(model, optimizer) == before


def test_a_subclass_of_a_known_optimizer_is_known() -> None:
    class Mine(optim.AdamW):
        pass

    model, optimizer = trained(lambda: Mine(1e-2))
    shrink_to(model.layers[0], path=PATH, optimizer=optimizer, sleep=SleepDict(), rank=1)
    train(model, optimizer)
    assert model.layers[0].rank == 1


@pytest.mark.parametrize("optimizer", [None, optim.Adam(0.1)])
def test_a_layer_without_state_changes_as_well(optimizer: optim.Optimizer | None) -> None:
    model, sleep = Stack(), SleepDict()
    change: dict[str, Any] = {"path": PATH, "optimizer": optimizer, "sleep": sleep}
    shrink_to(model.layers[0], rank=1, **change)
    wake(model.layers[0], sleep.ids(PATH), **change)
    train(model, optimizer or optim.Adam(0.1))
    assert model.layers[0].rank == RANK


def test_a_layer_that_is_the_whole_model_is_found_by_the_empty_path() -> None:
    layer = random_layer(OUT, INNER, RANK, 0)
    optimizer = initialised(optim.Adam(0.1), layer)
    grow(layer, 1, path="", optimizer=optimizer, key=mx.random.key(0))
    assert optimizer.state["U"]["m"].shape == (OUT, RANK + 1)


def test_waking_beyond_the_full_rank_changes_nothing() -> None:
    model, optimizer = trained(OPTIMIZERS["Adam"])
    layer, sleep = model.layers[0], SleepDict()
    change: dict[str, Any] = {"path": PATH, "optimizer": optimizer}
    ids = park(layer, [0], sleep=sleep, **change)
    grow(layer, INNER - layer.rank, key=mx.random.key(0), **change)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=r"min\(out, in\) = 5"):
        wake(layer, ids, sleep=sleep, **change)
    assert snapshot(model, optimizer) == before
    assert sleep.ids(PATH) == ids


@pytest.mark.parametrize(
    ("shrink", "target"),
    [(shrink_to, -1), (shrink_to, RANK + 1), (soft_threshold, -0.1), (soft_threshold, math.nan)],
)
def test_a_bad_target_is_refused_before_anything_changes(
    shrink: Callable[..., float], target: float
) -> None:
    model, optimizer = trained(OPTIMIZERS["Adam"])
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=r"`rank`|`tau`"):
        shrink(model.layers[0], target, path=PATH, optimizer=optimizer, sleep=SleepDict())
    assert snapshot(model, optimizer) == before


@pytest.mark.parametrize("indices", [[RANK], [-1], [0, 0]])
def test_bad_indices_are_refused_before_anything_changes(indices: list[int]) -> None:
    model, optimizer = trained(OPTIMIZERS["Adam"])
    sleep, before = SleepDict(), snapshot(model, optimizer)
    with pytest.raises(ValueError, match="`indices` must hold distinct"):
        park(model.layers[0], indices, path=PATH, optimizer=optimizer, sleep=sleep)
    assert snapshot(model, optimizer) == before
    assert len(sleep) == 0


Component = tuple[bytes, ...]


class Sleepers(RuleBasedStateMachine):
    """Whatever is parked, woken and grown: every component exists once, its bits unchanged."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.model, self.optimizer, self.sleep = Stack(), optim.AdamW(1e-2), SleepDict()
        self.model.set_dtype(mx.bfloat16)
        initialised(self.optimizer, self.model)
        for name in ("U", "S", "Vh"):
            for leaf, array in self.optimizer.state["layers"][0][name].items():
                noise = mx.array(rng.standard_normal(array.shape)).astype(mx.bfloat16)
                self.optimizer.state["layers"][0][name][leaf] = noise
        self.layer = self.model.layers[0]
        self.change: dict[str, Any] = {"path": PATH, "optimizer": self.optimizer}
        self.known = Counter(self.awake())

    def awake(self) -> list[Component]:
        moments = moments_of(self.optimizer)
        arrays = list(self.layer.factors()._asdict().items()) + sorted(moments.items())
        return [component(arrays, i) for i in range(self.layer.rank)]

    def asleep(self) -> Iterator[Component]:
        for i in self.sleep.ids(PATH):
            parked = self.sleep.get(i)
            moments = dict(tree_flatten(parked.moments))
            arrays = [parked.U, parked.S, parked.Vh, *(moments[name] for name in sorted(moments))]
            yield tuple(bits(a.reshape(-1)) for a in arrays)

    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        indices = data.draw(st.lists(st.integers(0, max(self.layer.rank - 1, 0)), unique=True))
        park(self.layer, indices if self.layer.rank else [], sleep=self.sleep, **self.change)

    @precondition(lambda self: self.sleep.ids(PATH))
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        room = self.layer.max_rank - self.layer.rank
        ids = data.draw(st.permutations(self.sleep.ids(PATH)))[:room]
        if ids:
            wake(self.layer, ids, sleep=self.sleep, **self.change)

    @rule(k=st.integers(0, 2), seed=st.integers(0, 9))
    def grow(self, k: int, seed: int) -> None:
        k = min(k, self.layer.max_rank - self.layer.rank)
        grow(self.layer, k, key=mx.random.key(seed), **self.change)
        self.known.update(self.awake()[self.layer.rank - k :])

    @rule()
    def save_and_load(self) -> None:
        self.sleep = SleepDict.from_arrays(self.sleep.arrays(), self.sleep.meta())

    @invariant()
    def nobody_is_lost(self) -> None:
        assert Counter(self.awake()) + Counter(self.asleep()) == self.known

    @invariant()
    def the_state_fits(self) -> None:
        assert_state_fits(self.model, self.optimizer, OPTIMIZERS["AdamW"])


def component(arrays: list[tuple[str, mx.array]], i: int) -> Component:
    return tuple(
        bits(array[..., i].reshape(-1) if name.startswith("U") else array[i].reshape(-1))
        for name, array in arrays
    )


TestSleepers = Sleepers.TestCase
TestSleepers.settings = settings(
    max_examples=15, stateful_step_count=12, deadline=None, derandomize=True
)
