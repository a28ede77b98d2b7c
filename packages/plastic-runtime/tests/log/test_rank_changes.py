"""What a change cost and gained, from events by hand and from a manager's own."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from plastic_core import RankLayer
from plastic_runtime import PlasticityEvent, PlasticityManager, rank_changes


def event(step: int, action: str, before: int = 2, after: int = 2, **more: Any) -> PlasticityEvent:
    fields: dict[str, Any] = {"time": 0.0, "layer": "a", "why": "", "bytes_asleep": 0}
    fields |= {"step": step, "action": action, "rank_before": before, "rank_after": after}
    return PlasticityEvent(**fields | {"bytes_awake": 100 * step} | more)


def test_events_of_one_time_are_one_change_with_all_their_seconds_and_bytes() -> None:
    events = [
        event(1, "keep"),
        event(3, "grow", 2, 6, loss_before=2.0, seconds=0.5),
        event(3, "shrink", 5, 4, layer="b", loss_before=2.0, bytes_awake=250, seconds=0.25),
        event(5, "wake", 4, 5, layer="b", loss_before=2.0, loss_after=2.5, seconds=0.1),
        event(7, "keep", loss_before=2.5, loss_after=1.75),
    ]
    first, second = rank_changes(events)
    assert (first.layers, first.grown, first.parked, first.woken) == (2, 4, 1, 0)
    assert (first.bytes_before, first.bytes_after, first.seconds) == (100, 250, 0.75)
    # The waking says that the loss had risen by 0.5; it is the waking that then gained 0.75.
    assert (first.loss_before, first.loss_after, first.gained) == (2.0, 2.5, -0.5)
    assert (second.woken, second.loss_before, second.gained) == (1, 2.5, 0.75)


def test_the_last_change_is_judged_by_the_last_losses_after_it() -> None:
    events = [event(4, "grow", 2, 4, loss_before=2.0)]
    (alone,) = rank_changes(events)
    assert (alone.loss_after, alone.gained, alone.seconds) == (None, None, None)
    losses = [(2, 9.0), (4, 9.0), (6, 5.0), (8, 1.0), (10, 1.5), (12, 2.0)]
    (judged,) = rank_changes(events, losses=losses, start_bytes=80)
    assert (judged.loss_after, judged.gained, judged.bytes_before) == (1.5, 0.5, 80)


def test_a_manager_tells_what_its_changes_cost_and_gained() -> None:
    model = nn.Sequential(RankLayer(mx.eye(6, 2), mx.ones(2), mx.eye(2, 6)))  # type: ignore[no-untyped-call]
    manager = PlasticityManager(model, window=1, patience=1, cooldown=0, guard=1, fraction=1.0)
    for loss in (2.0, 2.0, 1.0, 1.0, 0.5):
        manager.step(loss)
    first, second = rank_changes(manager.events, losses=[(9, 0.5)])
    assert (first.gained, second.gained) == (1.0, 0.5)
    assert all(0 < (change.seconds or 0) < 60 for change in (first, second))
    assert (first.bytes_after, second.bytes_before) == (208, 208)
    assert manager.events[0].seconds == pytest.approx(first.seconds)
