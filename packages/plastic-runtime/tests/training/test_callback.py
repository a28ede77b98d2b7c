"""The callback acts between updates: at once, after an accumulation, never on a bad loss."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from plastic_core import RankLayer
from plastic_runtime import PlasticityCallback, PlasticityManager


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
        self.seen: list[str] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        self.seen.append("train")

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        self.seen.append("val")


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
    assert log.seen == ["val", "train"]


def test_an_accumulation_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="`accumulation` must be at least 1, got 0"):
        PlasticityCallback(Recorder(), accumulation=0)
