"""What makes ranks change: real layers, real optimizers, losses made up to trigger."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from plastic_core import RankLayer
from plastic_runtime import Gram, PlasticityEvent, PlasticityManager, gradient_factors
from plastic_select.rules import Stable

DIMS = 12
QUICK = {
    "delta": 0.01,
    "gamma": 0.05,
    "k": 2,
    "window": 1,
    "patience": 2,
    "cooldown": 0,
    "guard": 2,
}


def orthonormal(columns: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((DIMS, columns)))[0]


def layer(spectrum: list[float], seed: int) -> RankLayer:
    """A layer without backbone whose factors are the SVD of a matrix of this spectrum."""
    U, V = orthonormal(len(spectrum), seed), orthonormal(len(spectrum), seed + 100)
    parts = (U, np.array(spectrum), V.T)
    return RankLayer(*(mx.array(part, dtype=mx.float32) for part in parts))


def stack(*spectra: list[float]) -> nn.Sequential:
    return sequential(*(layer(spectrum, seed) for seed, spectrum in enumerate(spectra)))


def sequential(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)  # type: ignore[no-untyped-call]


def manage(model: nn.Module, *args: object, **options: object) -> PlasticityManager:
    return PlasticityManager(model, *args, **{**QUICK, **options})  # type: ignore[arg-type]


def feed(manager: PlasticityManager, *losses: float) -> list[PlasticityEvent]:
    return [event for loss in losses for event in manager.step(loss)]


def until(manager: PlasticityManager, action: str, loss: float = 1.0) -> PlasticityEvent:
    """Feed one loss until something of that kind happens."""
    for _ in range(30):
        for event in manager.step(loss):
            if event.action == action:
                return event
    raise AssertionError(f"no {action} in 30 steps")


def to(target: mx.array) -> Callable[[nn.Module, mx.array], Callable[[], mx.array]]:
    """A probe loss: the squared distance of the model's outputs from those of a matrix."""
    return lambda model, x: lambda: mx.mean(mx.square(model(x) - x @ target.T))


def inputs(count: int = 40) -> mx.array:
    return mx.random.normal((count, DIMS), key=mx.random.key(7))


def bits(array: mx.array) -> list[int]:
    plain: list[int] = np.array(array).view(np.uint32).reshape(-1).tolist()
    return plain


def assert_state_fits(optimizer: optim.Optimizer, model: nn.Module) -> None:
    state = shapes(optimizer.state)
    for name, shape in shapes(model.trainable_parameters()).items():  # type: ignore[no-untyped-call]
        assert state[f"{name}.m"] == state[f"{name}.v"] == shape


def shapes(tree: object) -> dict[str, tuple[int, ...]]:
    flat: dict[str, mx.array] = tree_flatten(tree, destination={})  # type: ignore[assignment]
    return {name: array.shape for name, array in flat.items()}


# Growth


def test_a_plateau_grows_a_layer_and_a_falling_loss_does_not() -> None:
    manager = manage(stack([1.0, 1.0], [1.0, 1.0]))
    assert feed(manager, *(0.9**i for i in range(20))) == []
    event = until(manager, "grow", loss=0.1)
    assert (event.rank_before, event.rank_after) == (2, 4)
    assert sorted(manager.ranks().values()) == [2, 4]


def test_growth_does_not_change_the_function() -> None:
    model = stack([1.0, 1.0], [2.0, 2.0])
    x = inputs()
    before = np.array(model(x))
    until(manage(model), "grow")
    bound = 10 * DIMS * np.finfo(np.float32).eps * float(np.abs(before).max())
    assert np.abs(np.array(model(x)) - before).max() <= bound


def test_growth_with_a_probe_follows_the_gradient() -> None:
    model, target = stack([1.0, 1.0]), mx.array(orthonormal(DIMS, 5), dtype=mx.float32)
    loss = to(target)(model, inputs())
    G = gradient_factors(model, loss)["layers.0"].dense()
    U, Vh = (np.array(model.layers[0].U), np.array(model.layers[0].Vh))
    beyond = (np.eye(DIMS) - U @ U.T) @ G @ (np.eye(DIMS) - Vh.T @ Vh)
    left, s, _ = np.linalg.svd(beyond)
    until(manage(model, loss=loss), "grow")
    new = np.array(model.layers[0].U)[:, 2:]
    assert s[1] > 1.2 * s[2]
    np.testing.assert_allclose(np.abs(left[:, :2].T @ new), np.eye(2), atol=0.02)


def test_growth_without_a_probe_is_random_but_the_same_for_the_same_seed() -> None:
    def grown(seed: int) -> list[int]:
        model = stack([1.0, 1.0])
        until(manage(model, seed=seed), "grow")
        return bits(model.layers[0].U)

    assert grown(1) == grown(1)
    assert grown(1) != grown(2)


def test_the_layer_that_the_probe_points_at_grows_first() -> None:
    """The second layer works on zeros, so no gradient reaches it."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.used, self.idle = layer([1.0, 1.0], 0), layer([1.0, 1.0], 1)

        def __call__(self, x: mx.array) -> mx.array:
            return self.used(x) + self.idle(0 * x)

    for score in ("gradient", "relevance"):
        model = Branches()
        manager = manage(model, loss=to(mx.eye(DIMS))(model, inputs()), score=score)
        event = until(manager, "grow")
        assert event.layer == "used"
        assert event.score is not None
        assert event.score > 0


def test_growth_that_does_not_help_is_taken_back_once_and_for_all() -> None:
    manager = manage(stack([1.0, 1.0]))
    feed(manager, *[1.0] * 60)
    assert [e.action for e in manager.events] == ["grow", "shrink", "keep", "keep"]
    assert manager.ranks() == {"layers.0": 2}
    assert manager.settled


def test_max_bytes_is_never_exceeded() -> None:
    component = 4 * (2 * DIMS + 1)
    manager = manage(stack([1.0, 1.0], [1.0, 1.0]), max_bytes=7 * component, fraction=1.0)
    for _ in range(40):
        manager.step(0.5 ** sum(manager.ranks().values()))
        assert manager.bytes_awake <= 7 * component
    assert manager.bytes_awake == 7 * component


# Shrinking and waking


@pytest.mark.parametrize("strategy", ["stable", "theorem"])
def test_a_layer_shrinks_to_the_rank_its_spectrum_shows(strategy: str) -> None:
    model = stack([1.0, 0.95, 0.9, 1e-3, 1e-3])
    event = until(manage(model, strategy=strategy), "shrink")
    assert (event.rank_before, event.rank_after) == (5, 3)


def test_activation_shrinks_what_the_inputs_do_not_reach() -> None:
    model = stack([1.0] * 6)
    seen = np.array(model.layers[0].Vh, dtype=np.float64)[:4]
    grams = {"layers.0": Gram(seen.T @ seen, 100)}
    event = until(manage(model, strategy="activation", grams=grams), "shrink")
    assert (event.rank_before, event.rank_after) == (6, 4)


def test_a_spectrum_without_a_gap_does_not_shrink_under_the_theorem() -> None:
    manager = manage(stack([1.0, 0.8, 0.6, 0.5, 0.4]), strategy="theorem")
    feed(manager, *[1.0] * 5)
    assert {event.action for event in manager.events} <= {"grow"}


def test_a_harmless_shrink_sleeps_on_and_a_harmful_one_wakes_with_the_same_bits() -> None:
    model = stack([1.0, 0.9, 0.8, 0.1, 0.1, 0.1])
    manager = manage(model)
    until(manager, "shrink")
    parked = {i: manager.sleep_dict.get(i) for i in manager.sleep_dict.ids("layers.0")}
    assert len(parked) == 3
    event = until(manager, "wake", loss=2.0)
    woken = set(parked) - set(manager.sleep_dict.ids("layers.0"))
    assert len(woken) == event.rank_after - 3
    for column, i in enumerate(sorted(woken), start=3):
        assert bits(model.layers[0].U[:, column]) == bits(parked[i].U)
        assert bits(model.layers[0].S[column]) == bits(parked[i].S)
        assert bits(model.layers[0].Vh[column]) == bits(parked[i].Vh)


def test_waking_goes_on_until_the_loss_is_back_and_leaves_a_floor() -> None:
    manager = manage(stack([1.0, 0.5, 0.5, 0.5, 0.5]))
    for _ in range(60):
        deficit = max(0, 4 - manager.ranks()["layers.0"])
        manager.step(1.0 + 0.3 * deficit)
    assert manager.ranks() == {"layers.0": 4}
    assert manager.settled
    shrinks = [e.rank_after for e in manager.events if e.action == "shrink"]
    assert all(rank >= 4 for rank in shrinks[2:])


def test_the_most_useful_sleeper_wakes_first_whatever_its_size() -> None:
    """The target needs the third component only; the second is larger."""
    model = stack([1.0, 0.4, 0.3])
    U, Vh = model.layers[0].U, model.layers[0].Vh
    x = inputs(200)
    need = U[:, :1] @ Vh[:1] + U[:, 2:] @ Vh[2:]
    manager = manage(model, loss=to(need)(model, x))
    feed(manager, 1.0)
    manager.shrink("layers.0", 1)
    useful = bits(manager.sleep_dict.get(1).U)
    event = until(manager, "wake", loss=2.0)
    assert (event.rank_before, event.rank_after) == (1, 2)
    assert bits(model.layers[0].U[:, 1]) == useful


def test_without_a_probe_the_largest_sleepers_wake_first() -> None:
    model = stack([1.0, 0.1, 0.9])
    manager = manage(model)
    feed(manager, 1.0)
    manager.shrink("layers.0", 1)
    until(manager, "wake", loss=2.0)
    assert float(model.layers[0].S[1]) == pytest.approx(0.9, rel=1e-5)


def test_a_soft_threshold_lowers_what_stays_and_parks_what_it_had() -> None:
    model = stack([1.0, 1.0, 0.2, 0.1])
    manager = manage(model, soft_threshold=True, strategy=Stable(0.9))
    event = until(manager, "shrink")
    assert event.rank_after == 2
    np.testing.assert_allclose(np.array(model.layers[0].S), [0.8, 0.8], rtol=1e-5)
    asleep = [float(manager.sleep_dict.get(i).S) for i in manager.sleep_dict.ids("layers.0")]
    np.testing.assert_allclose(asleep, [0.2, 0.1], rtol=1e-5)


# What must not happen


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing_and_is_reported(loss: float) -> None:
    manager = manage(stack([1.0, 1.0]))
    feed(manager, 1.0, 1.0)
    before = manager.state()
    (event,) = manager.step(loss)
    assert event.action == "keep"
    assert str(loss) in event.why
    assert manager.state() == before
    assert manager.ranks() == {"layers.0": 2}


def test_a_probe_that_is_not_finite_grows_nothing() -> None:
    model = stack([1.0, 1.0])
    manager = manage(model, loss=lambda: mx.sum(model(inputs())) * mx.array(float("nan")))
    feed(manager, *[1.0] * 10)
    assert manager.ranks() == {"layers.0": 2}


def test_only_rank_layers_are_managed() -> None:
    model = sequential(nn.Linear(DIMS, DIMS), layer([1.0, 1.0], 0))
    manager = manage(model)
    assert manager.ranks() == {"layers.1": 2}
    until(manager, "grow")
    assert isinstance(model.layers[0], nn.Linear)


def test_a_layer_of_rank_zero_can_grow_and_does_not_shrink() -> None:
    model = stack([1.0])
    model.layers[0].keep([])
    manager = manage(model)
    assert until(manager, "grow").rank_after == 2


def test_optimizer_state_follows_every_change_and_training_goes_on() -> None:
    model = stack([1.0] * 3 + [1e-3] * 4, [1.0] * 2)
    optimizer, x = optim.AdamW(learning_rate=1e-3), inputs()
    loss = to(mx.array(orthonormal(DIMS, 3), dtype=mx.float32))(model, x)
    manager = manage(model, optimizer, loss=loss, fraction=1.0)
    step = nn.value_and_grad(model, lambda model: loss())
    for _ in range(30):
        _, gradients = step(model)
        optimizer.update(model, gradients)
        mx.eval(model.state, optimizer.state)
        assert_state_fits(optimizer, model)
        actions = [event.action for event in manager.events]
        manager.step(2.0 if "shrink" in actions and "wake" not in actions else 1.0)
        assert_state_fits(optimizer, model)
    assert {"grow", "shrink", "wake"} <= set(actions)
