"""The manager's own promises: by hand, on record, resumed, refused."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from plastic_core import RankLayer
from plastic_runtime import (
    EventLog,
    Gram,
    Parked,
    PlasticityManager,
    SleepDict,
    read_events,
)
from plastic_runtime.manager.targets import RankTarget, plastic_spectrum
from plastic_select import STRATEGIES
from plastic_select.rules import Activation, Stable

DIMS = 10
COMPONENT = 4 * (2 * DIMS + 1)
QUICK = {"delta": 0.01, "gamma": 0.05, "window": 1, "patience": 2, "cooldown": 0, "guard": 2}


def layer(spectrum: list[float], seed: int = 0) -> RankLayer:
    rng, r = np.random.default_rng(seed), len(spectrum)
    U, V = (np.linalg.qr(rng.standard_normal((DIMS, r)))[0] for _ in range(2))
    return RankLayer(*(mx.array(a, dtype=mx.float32) for a in (U, np.array(spectrum), V.T)))


def model(*spectra: list[float]) -> nn.Sequential:
    layers = [layer(spectrum, seed) for seed, spectrum in enumerate(spectra)]
    return nn.Sequential(*layers)  # type: ignore[no-untyped-call]


def manage(model: nn.Module, **options: object) -> PlasticityManager:
    return PlasticityManager(model, **{**QUICK, **options})  # type: ignore[arg-type]


def bits(layer: RankLayer) -> list[list[int]]:
    return [np.array(factor).view(np.uint32).reshape(-1).tolist() for factor in layer.factors()]


# By hand


def test_a_shrink_asked_for_is_guarded_like_any_other() -> None:
    manager = manage(model([1.0, 0.9, 0.8, 0.7]))
    manager.step(1.0)
    event = manager.shrink("layers.0", 1)
    assert (event.action, event.rank_before, event.rank_after) == ("shrink", 4, 1)
    (woken,) = manager.step(3.0)
    assert woken.action == "wake"
    assert (woken.loss_before, woken.loss_after) == (1.0, 3.0)


def test_all_that_a_shrink_parked_can_be_woken_by_hand_bit_for_bit() -> None:
    net = model([1.0, 0.9, 0.8, 0.7])
    W = np.array(net.layers[0].weight)
    manager = manage(net)
    manager.step(1.0)
    manager.shrink("layers.0", 1)
    asleep = [manager.sleep_dict.get(i) for i in manager.sleep_dict.ids("layers.0")]
    kept = bits(net.layers[0])
    manager.wake("layers.0")
    U, S, Vh = net.layers[0].factors()
    assert bits(RankLayer(U[:, :1], S[:1], Vh[:1])) == kept
    assert bits(RankLayer(U[:, 1:], S[1:], Vh[1:])) == bits(
        RankLayer(*(mx.stack(parts, axis) for parts, axis in _columns(asleep)))
    )
    bound = 10 * DIMS * float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(np.array(net.layers[0].weight), W, atol=bound)
    assert manager.bytes_asleep == 0
    assert manager.step(9.0) == []


def _columns(asleep: list[Parked]) -> list[tuple[list[mx.array], int]]:
    return [([p.U for p in asleep], 1), ([p.S for p in asleep], 0), ([p.Vh for p in asleep], 0)]


def test_a_growth_asked_for_is_judged_at_the_next_plateau() -> None:
    manager = manage(model([1.0, 1.0]))
    manager.step(1.0)
    manager.grow("layers.0", 3)
    for _ in range(20):
        manager.step(1.0)
    assert manager.ranks() == {"layers.0": 2}


def test_the_ceiling_holds_by_hand_too_and_counts_what_a_guard_may_wake() -> None:
    manager = manage(model([1.0, 1.0, 1.0]), max_bytes=4 * COMPONENT)
    with pytest.raises(ValueError, match=r"`k` must be at most 1 under 336 bytes, got 2"):
        manager.grow("layers.0", 2)
    manager.step(1.0)
    manager.shrink("layers.0", 1)
    with pytest.raises(ValueError, match=r"`k` must be at most 1 "):
        manager.grow("layers.0", 2)
    manager.grow("layers.0", 1)
    manager.wake("layers.0")
    assert manager.bytes_awake == 4 * COMPONENT


def test_bytes_are_those_of_the_factors() -> None:
    manager = manage(model([1.0, 1.0, 1.0], [1.0]))
    assert (manager.bytes_awake, manager.bytes_asleep) == (4 * COMPONENT, 0)
    event = manager.shrink("layers.0", 1)
    assert (manager.bytes_awake, manager.bytes_asleep) == (2 * COMPONENT, 2 * COMPONENT)
    assert (event.bytes_awake, event.bytes_asleep) == (2 * COMPONENT, 2 * COMPONENT)


def test_a_shrink_reports_the_frobenius_error_it_causes() -> None:
    event = manage(model([1.0, 0.4, 0.3])).shrink("layers.0", 1)
    assert "|dW| = 0.5" in event.why


# On record


def test_every_event_is_one_line_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    manager = manage(model([1.0] * 3 + [1e-3] * 3, [1.0, 1.0]), log=path)
    for loss in [1.0] * 4 + [2.0] * 3 + [1.0] * 20:
        manager.step(loss)
    assert read_events(path) == manager.events
    assert {"grow", "shrink", "wake", "keep"} <= {event.action for event in manager.events}
    assert [e.step for e in manager.events] == sorted(e.step for e in manager.events)


def test_a_log_of_ones_own_is_used() -> None:
    log = EventLog()
    manage(model([1.0, 1.0]), log=log).shrink("layers.0", 1)
    assert [event.action for event in log] == ["shrink"]


# Resumed


def test_a_resumed_manager_decides_the_same() -> None:
    """Interrupt a run at every step, with a guard and a trial open along the way."""
    losses = [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 1.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    spectra = [1.0, 0.9, 0.8, 0.1, 0.1, 0.1], [1.0, 0.5]

    def run(cut: int | None) -> tuple[list[object], list[list[list[int]]]]:
        net = model(*spectra)
        manager, events = manage(net), []
        for i, loss in enumerate(losses):
            if i == cut:
                saved = json.loads(json.dumps(manager.state()))
                asleep = manager.sleep_dict
                manager = manage(net)
                manager.sleep_dict.load(asleep.arrays(), asleep.meta())
                manager.load_state(saved)
            events += manager.step(loss)
        told: list[object] = [replace(event, time=0.0) for event in events]
        return told, [bits(layer) for layer in net.layers]

    undisturbed = run(None)
    assert len(undisturbed[0]) >= 4
    for cut in range(1, len(losses)):
        assert run(cut) == undisturbed


def test_a_state_of_other_options_is_refused_by_name() -> None:
    state = manage(model([1.0]), gamma=0.1).state()
    with pytest.raises(ValueError, match=r"other options: gamma was 0.1, is 0.05\."):
        manage(model([1.0])).load_state(state)
    state = manage(model([1.0], [1.0])).state()
    with pytest.raises(ValueError, match="layers was"):
        manage(model([1.0])).load_state(state)


def test_sleep_dict_is_no_parameter_of_anything() -> None:
    net = model([1.0, 1.0])
    manager = manage(net)
    manager.shrink("layers.0", 1)
    assert isinstance(manager.sleep_dict, SleepDict)
    assert len(manager.sleep_dict) == 1
    assert net.layers[0].S.shape == (1,)


# Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "loud"}, r"`strategy` must be one of 'activation', .*'stable', 'theorem'"),
        ({"score": "loud"}, r"`score` must be one of \['descent', .*\], got 'loud'"),
        ({"strategy": "activation"}, r"`grams` must hold the input Gram of 'layers.0'"),
        ({"max_bytes": 10}, r"`max_bytes` must be at least the 168 bytes awake, got 10"),
        ({"patience": 0}, r"`patience` must be at least 1, got 0"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manage(model([1.0, 1.0]), **options)


def test_a_model_without_rank_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="`model` must contain a RankLayer"):
        manage(nn.Linear(3, 3))


def test_an_unknown_layer_is_refused_with_the_known_ones() -> None:
    manager = manage(model([1.0, 1.0]))
    for act in (manager.grow, manager.shrink):
        with pytest.raises(ValueError, match=r"`path` must be one of \['layers.0'\], got 'x'"):
            act("x", 1)


def test_a_rank_out_of_range_leaves_all_as_it_was() -> None:
    net = model([1.0, 1.0])
    manager = manage(net)
    manager.step(1.0)
    before = bits(net.layers[0]), manager.state()
    with pytest.raises(ValueError, match="`rank` must be between 0 and 2"):
        manager.shrink("layers.0", 3)
    with pytest.raises(ValueError, match="`k` must be between 0 and"):
        manager.grow("layers.0", DIMS)
    assert (bits(net.layers[0]), manager.state()) == before
    assert manager.events == []


# Targets


def test_the_spectrum_of_unbalanced_factors_is_that_of_their_product() -> None:
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((DIMS, 4)), rng.standard_normal(4), rng.standard_normal((4, DIMS))
    drifted = RankLayer(*(mx.array(part, dtype=mx.float32) for part in parts))
    exact = np.linalg.svd(parts[0] * parts[1] @ parts[2], compute_uv=False)[:4]
    bound = 10 * DIMS * np.finfo(np.float32).eps * exact[0]
    np.testing.assert_allclose(plastic_spectrum(drifted), exact, atol=bound)
    R = np.diag(np.arange(1.0, DIMS + 1))
    weighted = np.linalg.svd(parts[0] * parts[1] @ parts[2] @ np.sqrt(R), compute_uv=False)[:4]
    bound = 10 * DIMS * np.finfo(np.float32).eps * weighted[0]
    np.testing.assert_allclose(plastic_spectrum(drifted, gram=R), weighted, atol=bound)


@pytest.mark.parametrize("r", range(1, 6))
def test_the_theorem_finds_a_gap_wherever_it_is_and_none_where_there_is_none(r: int) -> None:
    spectrum = np.array([1.0] * r + [1e-2] * (6 - r))
    assert RankTarget.of("theorem").rank(spectrum, (40, 60)) == r
    assert RankTarget.of("theorem").rank(np.ones(r), (40, 60)) == r


def test_no_target_exceeds_the_budget() -> None:
    for strategy in STRATEGIES:
        assert RankTarget.of(strategy, target_compression=0.5).rank(np.ones(9), (20, 20)) <= 5
    for strategy in ("stable", "theorem", "activation"):
        assert RankTarget.of(strategy, target_compression=0.5).rank(np.ones(9), (20, 20)) == 5


def test_a_layer_without_components_asks_for_none() -> None:
    assert RankTarget.of("stable").rank(np.zeros(0), (5, 5)) == 0
    assert plastic_spectrum(layer([]), gram=np.eye(DIMS)).shape == (0,)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="`multiple` must be positive"):
        manage(model([1.0]), strategy=Stable(0.0))
    with pytest.raises(ValueError, match="`retained_energy` must be above 0"):
        manage(model([1.0]), strategy=Activation(0.0))
    with pytest.raises(ValueError, match="`target_compression` must be at least 0"):
        manage(model([1.0]), target_compression=1.0)


def test_a_name_stands_for_a_rule_that_keeps_nearly_all_energy() -> None:
    spectrum = np.sqrt([0.6, 0.3, 0.095, 0.005])
    for strategy in ("energy", "activation"):
        assert RankTarget.of(strategy).rank(spectrum, (40, 60)) == 3
    assert RankTarget.of(Activation(0.9)).rank(spectrum, (40, 60)) == 2
    assert RankTarget.of("energy").as_json() == {
        "strategy": "energy",
        "retained_energy": 0.99,
        "target_compression": 0.0,
    }


def test_grams_are_ignored_by_strategies_that_need_none() -> None:
    grams = {"layers.0": Gram(np.zeros((DIMS, DIMS)), 1)}
    manager = manage(model([1.0, 0.9, 1e-3, 1e-3]), grams=grams)
    for _ in range(3):
        manager.step(1.0)
    assert manager.ranks() == {"layers.0": 2}
