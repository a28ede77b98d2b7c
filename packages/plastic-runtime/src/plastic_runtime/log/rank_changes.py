"""What every change of ranks cost and gained, read from the events around it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from plastic_runtime.log.events import PlasticityEvent

CHANGES = ("grow", "shrink", "wake")
"""The actions of events that change a rank."""
LAST = 3
"""Validation losses at the end that judge the last change, as many as the moving loss has."""


@dataclass(frozen=True, slots=True)
class RankChange:
    """All ranks that changed at one time.

    Attributes:
        step: Step of the events.
        layers: Layers whose rank changed.
        grown: Components that are new.
        parked: Components that were put to sleep.
        woken: Components that were woken.
        bytes_before: Bytes awake before it; None where no log tells.
        bytes_after: Bytes awake after it.
        seconds: Time to decide and to act; None in logs that do not tell. What training takes to
            compile its next step is not in it.
        loss_before: Moving loss at the change; None before the first one is known.
        loss_after: Moving loss at the next judgement: when a shrink was found harmless or not, a
            growth was judged, or ranks changed again. None before that.

    Examples:
        >>> change = RankChange(9, 2, 4, 0, 0, 800, 960, 0.5, 2.5, 2.25)
        >>> change.gained
        0.25
    """

    step: int
    layers: int
    grown: int
    parked: int
    woken: int
    bytes_before: int | None
    bytes_after: int
    seconds: float | None
    loss_before: float | None
    loss_after: float | None

    @property
    def gained(self) -> float | None:
        """Fall of the loss from the change to its judgement; training goes on meanwhile."""
        if self.loss_before is None or self.loss_after is None:
            return None
        return self.loss_before - self.loss_after


def rank_changes(
    events: Sequence[PlasticityEvent],
    *,
    losses: Sequence[tuple[int, float]] = (),
    start_bytes: int | None = None,
) -> list[RankChange]:
    """Return the changes of ranks, oldest first.

    Args:
        events: The events of a run, oldest first, those that only report included.
        losses: Steps and validation losses: the last ones judge what no event has judged.
        start_bytes: Bytes awake before the first event.

    Examples:
        >>> known = {"time": 0.0, "layer": "up", "why": "", "bytes_asleep": 0, "rank_before": 2}
        >>> grown = {"step": 3, "action": "grow", "rank_after": 4, "bytes_awake": 80}
        >>> kept = {"step": 9, "action": "keep", "rank_after": 4, "bytes_awake": 80}
        >>> pair = [(grown, 2.5), (kept, 2.25)]
        >>> events = [PlasticityEvent(**known, **more, loss_before=loss) for more, loss in pair]
        >>> [(change.step, change.grown, change.gained) for change in rank_changes(events)]
        [(3, 2, 0.25)]
    """
    moments = [list(group) for _, group in groupby(events, _moment)]
    changes, before = [], start_bytes
    for moment, later in zip(moments, [*moments, []][1:], strict=True):
        acts = [event for event in moment if event.action in CHANGES]
        if acts:
            after = _moving(later[0]) if later else _last(losses, acts[0].step)
            changes.append(_change(acts, before, after))
        before = moment[-1].bytes_awake
    return changes


def _moment(event: PlasticityEvent) -> tuple[int, int | None]:
    """Return what events of one time have in common."""
    return event.step, event.validation


def _change(
    acts: list[PlasticityEvent], bytes_before: int | None, loss_after: float | None
) -> RankChange:
    by_action = {
        action: sum(abs(e.rank_after - e.rank_before) for e in acts if e.action == action)
        for action in CHANGES
    }
    seconds = [event.seconds for event in acts if event.seconds is not None]
    return RankChange(
        step=acts[0].step,
        layers=len({event.layer for event in acts}),
        grown=by_action["grow"],
        parked=by_action["shrink"],
        woken=by_action["wake"],
        bytes_before=bytes_before,
        bytes_after=acts[-1].bytes_awake,
        seconds=math.fsum(seconds) if seconds else None,
        loss_before=_moving(acts[0]),
        loss_after=loss_after,
    )


def _moving(event: PlasticityEvent) -> float | None:
    """Return the moving loss at an event: the later one of those that it tells."""
    return event.loss_before if event.loss_after is None else event.loss_after


def _last(losses: Sequence[tuple[int, float]], step: int) -> float | None:
    """Return the mean of the last losses after a step."""
    after = [loss for when, loss in losses if when > step][-LAST:]
    return math.fsum(after) / len(after) if after else None
