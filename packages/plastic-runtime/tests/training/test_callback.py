"""The callback acts between updates: at once, after an accumulation, never on a bad loss."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from plastic_core import RankLayer
from plastic_runtime import PlasticityCallback, PlasticityManager, Schedule


class Recorder(PlasticityManager):
    """A manager that records what it is told."""

    def __init__(self) -> None:
        layer = RankLayer(mx.ones((4, 1)), mx.ones(1), mx.ones((1, 4)))
        super().__init__(nn.Sequential(layer))  # type: ignore[no-untyped-call]
        self.losses: list[float] = []

    def step(self, val_loss: float | mx.array) -> Any:
        self.losses.append(float(val_loss))
        return super().step(val_loss)


class Log:
    """Another callback."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        self.seen.append(("train", train_info["iteration"]))

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        self.seen.append(("val", val_info["iteration"]))


def val(iteration: int, loss: float = 1.0) -> dict[str, Any]:
    return {"iteration": iteration, "val_loss": loss, "val_time": 0.1}


def train(iteration: int, loss: float = 1.0) -> dict[str, Any]:
    return {"iteration": iteration, "train_loss": loss}


def test_without_accumulation_a_loss_is_taken_in_at_once() -> None:
    manager = Recorder()
    PlasticityCallback(manager).on_val_loss_report(val(199, 2.5))
    assert manager.losses == [2.5]


def test_inside_an_accumulation_a_loss_waits_for_its_end() -> None:
    manager = Recorder()
    callback = PlasticityCallback(manager, accumulation=4)
    callback.on_val_loss_report(val(199, 2.5))
    callback.on_train_loss_report(train(202))
    assert manager.losses == []
    callback.on_train_loss_report(train(204))
    callback.on_train_loss_report(train(208))
    assert manager.losses == [2.5]


def test_between_batches_a_loss_waits_no_longer_than_the_update() -> None:
    def batches(*, loop: bool = False) -> Iterator[int]:
        yield from range(10)

    manager = Recorder()
    callback = PlasticityCallback(manager, accumulation=3)
    taken = []
    for batch in callback.between(batches)(loop=True):
        if batch == 4:
            callback.on_val_loss_report(val(4, 2.5))
        taken.append(len(manager.losses))
    assert taken == [0] * 6 + [1] * 4
    assert list(callback.between(batches)()) == list(range(10))
    assert manager.losses == [2.5]


def test_a_training_loss_that_is_not_finite_changes_nothing_and_is_on_record() -> None:
    manager = Recorder()
    callback = PlasticityCallback(manager, accumulation=4)
    callback.on_val_loss_report(val(3))
    callback.on_train_loss_report(train(4, float("nan")))
    assert manager.losses == []
    (event,) = manager.events
    assert (event.action, event.why) == ("keep", "the training loss is nan: no change")


def test_events_are_dated_by_training_steps_as_losses_are() -> None:
    manager = Recorder()
    callback = PlasticityCallback(manager, accumulation=2)
    callback.on_val_loss_report(val(199, 2.5))
    callback.on_train_loss_report(train(200))
    callback.on_val_loss_report(val(400, float("nan")))
    callback.on_train_loss_report(train(410, float("nan")))
    assert [(e.step, e.validation) for e in manager.events] == [(400, 1), (410, 1)]


def test_a_manager_that_knows_no_training_steps_counts_validations() -> None:
    manager = Recorder()
    for loss in (2.5, float("nan")):
        manager.step(loss)
    assert [(e.step, e.validation) for e in manager.events] == [(1, None)]


def test_every_report_goes_on_to_the_wrapped_callback() -> None:
    log = Log()
    callback = PlasticityCallback(Recorder(), wrapped=log)
    callback.on_val_loss_report(val(0))
    callback.on_train_loss_report(train(1))
    assert log.seen == [("val", 0), ("train", 1)]


def test_a_run_that_goes_on_counts_from_its_beginning() -> None:
    layers = [RankLayer(mx.ones((4, 2)), mx.array([2.0, 1.0]), mx.ones((2, 4))) for _ in range(2)]
    model, log = nn.Sequential(*layers), Log()  # type: ignore[no-untyped-call]
    schedule = Schedule(144, 72, begin=12, end=12, every=1)
    loss = partial(lambda x: mx.square(model(x)).mean(), mx.ones((1, 4)))
    manager = PlasticityManager(model, loss=loss, schedule=schedule)
    callback = PlasticityCallback(manager, accumulation=2, start=9, wrapped=log)

    def batches(*, loop: bool) -> Iterator[int]:
        yield from range(6)

    bytes_awake = []
    for iteration, _ in enumerate(callback.between(batches)(loop=True), start=1):
        callback.on_train_loss_report(train(iteration))
        bytes_awake.append(manager.bytes_awake)
    assert bytes_awake == [144] * 4 + [72] * 2  # updates end after 11 and 13 steps
    assert {event.step for event in manager.events} == {13}
    assert log.seen == [("train", step) for step in range(10, 16)]
    with pytest.raises(ValueError, match="`start` must not be negative, got -1"):
        PlasticityCallback(manager, start=-1)


def test_an_accumulation_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="`accumulation` must be at least 1, got 0"):
        PlasticityCallback(Recorder(), accumulation=0)
