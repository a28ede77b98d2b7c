"""A run in several processes: the first one acts, a difference names a process and a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from plastic_core import RankLayer
from plastic_runtime import PlasticityManager, Schedule
from plastic_runtime.distributed import DisagreementError, Team
from plastic_runtime.training import AlikeRun
from plastic_runtime.training.alike import first_difference, layer_digests

RUN = Path("RUN")
NUMBERS = {"window": 1, "patience": 1, "cooldown": 0, "k": 1}


class Follower(Team):
    """The second of two processes; what it is told is set by the test."""

    def __init__(self, told: Any = None, digests: dict[str, str] | None = None) -> None:
        super().__init__()
        self.size, self.rank = 2, 1
        self.answer, self.digests = told, digests

    def gathered(self, value: Any) -> list[Any]:
        first = self.answer
        if isinstance(value, dict):
            first = {"host": "mac1", "digests": value["digests"] | (self.digests or {})}
        return [first, value]


def model_in_training() -> tuple[nn.Module, optim.Optimizer]:
    model = nn.Sequential(*(RankLayer(mx.eye(4, 2), mx.ones(2), mx.eye(2, 4)) for _ in range(2)))
    optimizer = optim.Adam(learning_rate=0.1)
    optimizer.update(model, model.trainable_parameters())
    return model, optimizer


def test_only_the_first_process_acts() -> None:
    model, optimizer = model_in_training()
    manager = PlasticityManager(model, optimizer, **NUMBERS)
    run = AlikeRun(Follower(told=False), RUN, model, optimizer, manager)
    assert [run.step(2.0), run.step(2.0), run.report("nothing")] == [[], [], None]
    assert (manager.moving_loss, manager.events) == (None, [])
    alone = AlikeRun(Team(), RUN, model, optimizer, manager)
    alone.step(2.0)
    assert [event.action for event in alone.step(2.0)] == ["grow"]


def test_nothing_is_told_where_nothing_is_due() -> None:
    model, optimizer = model_in_training()
    schedule = Schedule(first=200, last=100, begin=4, end=4, every=4)
    manager = PlasticityManager(
        model, optimizer, loss=lambda: model(mx.ones(4)).sum(), schedule=schedule
    )
    assert [step for step in range(8) if manager.is_due(step)] == [4, 5, 6, 7]

    class Silent(Follower):
        def gathered(self, value: Any) -> list[Any]:
            pytest.fail("it said something")

    assert AlikeRun(Silent(), RUN, model, optimizer, manager).advance(3) == []


def test_a_difference_names_the_process_and_the_layer() -> None:
    model, optimizer = model_in_training()
    manager = PlasticityManager(model, optimizer)
    run = AlikeRun(Follower(digests={"layers.1": "other"}), RUN, model, optimizer, manager)
    run.training_step = 40
    with pytest.raises(DisagreementError) as raised:
        run.check()
    message = str(raised.value)
    assert message.startswith("RUN: process 1 on ")
    assert "other numbers than process 0 in the layer 'layers.1', found after step 40" in message
    AlikeRun(Follower(), RUN, model, optimizer, manager).check()


@pytest.mark.parametrize("where", ["factor", "moment", "rate"])
def test_a_single_bit_shows_in_the_digest_of_its_layer(where: str) -> None:
    model, optimizer = model_in_training()
    manager = PlasticityManager(model, optimizer)
    before = layer_digests(model, optimizer, manager)
    layer = model.layers[1]
    if where == "factor":
        layer.S = mx.array([layer.S[0].item(), layer.S[1].item() * (1 + 2**-22)])
    elif where == "moment":
        moments = optimizer.state["layers"][1]["U"]
        moments["v"] = -(moments["v"] * -1.0) * (1 + 2**-22)
    else:
        optimizer.learning_rate = 0.2
    after = layer_digests(model, optimizer, manager)
    expected = "" if where == "rate" else "layers.1"
    assert [layer for layer in before if before[layer] != after[layer]] == [expected]


def test_layers_are_named_before_the_rest() -> None:
    assert first_difference([{"": "1", "a": "2"}, {"": "2", "a": "3"}]) == (1, "a")
    assert first_difference([{"": "1"}, {"": "1"}, {"": "2"}]) == (2, "")
    assert first_difference([{"a": "1"}, {"a": "1"}]) is None
