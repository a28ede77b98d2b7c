"""When to change ranks, where, and by how much: pure decisions, no arrays.

Everything here is a function from what is known (settings, state, observation) to what is to
be done and the next state. :class:`~plastic_runtime.PlasticityManager` measures, asks, and acts.

The loop is a heuristic: the moving validation loss stops falling by more than its noise (a
plateau, as learning-rate schedules detect it), one decision follows, and the loss that comes next
judges the decision. A shrink that hurt is woken and leaves a *floor*; a growth that did not help
leaves a *cap*.
Floors and caps close in on each layer, so ranks cannot flap.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from plastic_runtime.manager.noise import LOSSES, least_progress
from plastic_runtime.manager.state import Change, Guard, LayerView, PolicyState, Settings, Trial
from plastic_runtime.surgery.byte_count import ByteCount

Verdict = Literal["wait", "plateau", "wake", "keep"]


def watch(settings: Settings, state: PolicyState, loss: float) -> tuple[Verdict, PolicyState]:
    """Take in one validation loss and say what it asks for.

    Args:
        settings: The numbers that drive the decisions.
        state: What was known so far.
        loss: A finite validation loss.

    Returns:
        The verdict and the next state. ``"plateau"``: make a :func:`decide`. ``"wake"``: the last
        shrink hurt. ``"keep"``: the last shrink did no harm, its guard is closed. ``"wait"``:
        nothing yet.
    """
    guard = state.guard
    state = replace(
        state,
        step=state.step + 1,
        losses=(*state.losses, loss)[-settings.window :],
        recent=(*state.recent, loss)[-LOSSES:],
        rest=max(state.rest - 1, 0),
        guard=guard and replace(guard, left=guard.left - 1),
    )
    if len(state.losses) < settings.window:
        return "wait", state
    if state.guard is not None:
        return _watch_guard(settings, state, state.guard)
    if state.rest > 0:
        return "wait", state
    return _watch_plateau(settings, state)


def decide(
    settings: Settings,
    state: PolicyState,
    layers: list[LayerView],
    counted: ByteCount | None = None,
) -> tuple[tuple[Change, ...], PolicyState]:
    """Decide at a plateau which layers grow and which shrink.

    The growth before this plateau is judged first: unless the moving loss fell by more than
    ``gamma``, its layers are capped at the rank they had. Then the layers of the highest score
    per byte grow by ``k``, within caps, ``max_rank`` and the ceiling (room that a shrink of
    the same decision frees is not spent, for it may have to wake); and of those whose target
    is below their rank the layers of the lowest score per byte shrink to it, not below their
    floor and by half at most.

    Args:
        settings: The numbers that drive the decisions.
        state: The state that :func:`watch` returned with ``"plateau"``.
        layers: Every managed layer.
        counted: How the bytes under the ceiling are counted; by default ``bytes_per_rank`` for
            every component.

    Returns:
        The changes, no layer twice, and the next state (settled if there are none). Feed it
        to :func:`rank_changed` once the changes are made.
    """
    state = _judge_growth(settings, state)
    count = max(1, round(settings.fraction * len(layers)))
    goals = {layer.path: _goal(state, layer) for layer in layers}
    shrinking = [layer for layer in layers if goals[layer.path] < layer.rank]
    shrinking.sort(key=lambda layer: (layer.score_per_byte, layer.path))
    growing = [layer for layer in layers if goals[layer.path] == layer.rank and layer.score > 0]
    growing.sort(key=lambda layer: (-layer.score_per_byte, layer.path))
    ranks = {layer.path: layer.rank for layer in layers}
    sizes = counted or ByteCount({layer.path: layer.bytes_per_rank for layer in layers})
    changes = (
        *_growths(settings, state, growing, ranks, sizes, count),
        *(_shrink(state, layer, goals[layer.path]) for layer in shrinking[:count]),
    )
    return changes, replace(state, settled=not changes, stale=0)


def rank_changed(
    settings: Settings,
    state: PolicyState,
    *,
    grown: Mapping[str, int] | None = None,
    parked: Mapping[str, tuple[int, ...]] | None = None,
) -> PolicyState:
    """Return the state after changes were made: the moving loss starts afresh.

    Args:
        settings: The numbers that drive the decisions.
        state: The state before.
        grown: The rank *before* growing, by path; judged at the next plateau.
        parked: The ids of what was parked, by path; opens a guard, or joins the open one.
            Before the first loss there is nothing to compare with, hence no guard.

    Returns:
        The next state.
    """
    before = state.moving_loss
    guard, trial = state.guard, state.trial
    if grown and before is not None:
        trial = trial.joined(grown, before) if trial else Trial(before, dict(grown))
    if parked and guard is not None:
        guard = guard.joined(parked, settings.guard)
    elif parked and before is not None:
        guard = Guard(before, settings.guard, dict(parked))
    return replace(_afresh(settings, state, before), guard=guard, trial=trial)


def woken(
    settings: Settings,
    state: PolicyState,
    ids: Mapping[str, tuple[int, ...]],
    ranks: Mapping[str, int],
) -> PolicyState:
    """Return the state after a harmful shrink was, in part or whole, undone.

    Args:
        settings: The numbers that drive the decisions.
        state: The state before; its guard is open.
        ids: The ids of what woke, by path.
        ranks: The rank after waking, by path: from now on the layer's floor.

    Returns:
        The next state. The guard stays open over what still sleeps.
    """
    guard, before = state.guard, state.moving_loss
    if guard is not None:
        before, guard = guard.before, guard.without(ids, settings.guard)
    caps = {path: cap for path, cap in state.caps.items() if path not in ranks}
    floors = {**state.floors, **ranks}
    return replace(_afresh(settings, state, before), guard=guard, caps=caps, floors=floors)


def most_useful(benefits: Mapping[int, float]) -> tuple[int, ...]:
    """Return the fewest sleepers that hold at least half of the benefit, the most useful first.

    Half, so that a few wakings bring back all that matters and nothing that does not.
    Heuristic. Without any benefit, all ids.

    Args:
        benefits: Non-negative benefit by id.

    Returns:
        Ids in order of falling benefit, the lower id first among equals.
    """
    order = sorted(benefits, key=lambda i: (-benefits[i], i))
    total, held = math.fsum(benefits.values()), 0.0
    for count, i in enumerate(order, start=1):
        held += benefits[i]
        if total > 0 and held >= total / 2:
            return tuple(order[:count])
    return tuple(order)


def _watch_guard(
    settings: Settings, state: PolicyState, guard: Guard
) -> tuple[Verdict, PolicyState]:
    """Harm is a moving loss *and* a latest loss above the limit: a spike that healed is none."""
    limit = guard.before + settings.gamma * abs(guard.before)
    if min(_mean(state), state.losses[-1]) > limit:
        return "wake", state
    if guard.left > 0:
        return "wait", state
    return "keep", replace(state, guard=None, rest=settings.cooldown)


def _watch_plateau(settings: Settings, state: PolicyState) -> tuple[Verdict, PolicyState]:
    """Count losses without progress against the best moving loss since the last change."""
    moving = _mean(state)
    reference = moving if state.reference is None else state.reference
    if moving > reference + settings.gamma * abs(reference):
        # No change of ours did this: the data did, and what was learnt about ranks is void.
        state = replace(state, floors={}, caps={}, reference=moving, stale=0, settled=False)
    elif state.reference is None or moving < reference - _progress(settings, state, reference):
        state = replace(state, reference=moving, stale=0, settled=False)
    else:
        state = replace(state, stale=state.stale + 1)
    return ("plateau" if state.stale >= settings.patience else "wait"), state


def _progress(settings: Settings, state: PolicyState, reference: float) -> float:
    """Return the fall below the reference that counts as progress."""
    if settings.delta is None:
        return least_progress(state.recent, settings.window, reference)
    return settings.delta * abs(reference)


def _judge_growth(settings: Settings, state: PolicyState) -> PolicyState:
    """Cap the layers whose growth did not help; one that helped lifts every cap and floor."""
    if state.trial is None:
        return state
    before = state.trial.before
    # By gamma, not delta: what helps by less could be taken away again without "harm".
    if _mean(state) < before - settings.gamma * abs(before):
        # The others were judged while these layers were the bottleneck.
        return replace(state, trial=None, caps={}, floors={})
    return replace(state, trial=None, caps={**state.caps, **state.trial.ranks})


def _goal(state: PolicyState, layer: LayerView) -> int:
    """Return the rank to shrink to, or the present one."""
    wanted = min(layer.target, state.caps.get(layer.path, layer.max_rank))
    least = max(state.floors.get(layer.path, 1), math.ceil(layer.rank / 2))
    return min(max(wanted, least), layer.rank)


def _growths(
    settings: Settings,
    state: PolicyState,
    layers: list[LayerView],
    ranks: dict[str, int],
    counted: ByteCount,
    count: int,
) -> list[Change]:
    """Return the first ``count`` layers that caps, shapes and the room let grow."""
    changes: list[Change] = []
    for layer in layers:
        if len(changes) == count:
            break
        limit = min(layer.max_rank, state.caps.get(layer.path, layer.max_rank))
        k = min(settings.k, limit - layer.rank)
        k = most_added(counted, ranks, layer.path, k, settings.max_bytes)
        if k > 0:
            ranks = ranks | {layer.path: layer.rank + k}
            why = "most score per byte"
            changes.append(Change("grow", layer.path, ranks[layer.path], why))
    return changes


def most_added(
    counted: ByteCount, ranks: Mapping[str, int], path: str, k: int, ceiling: int | None
) -> int:
    """Return how many of ``k`` more components of a layer fit under the ceiling, 0 if none."""
    fits = (
        added
        for added in range(k, 0, -1)
        if ceiling is None or counted({**ranks, path: ranks[path] + added}) <= ceiling
    )
    return next(fits, 0)


def _shrink(state: PolicyState, layer: LayerView, goal: int) -> Change:
    """Return the shrink of one layer, with the reason that set its goal."""
    if state.caps.get(layer.path, layer.max_rank) < min(layer.target, layer.rank):
        return Change("shrink", layer.path, goal, "growing did not help")
    return Change("shrink", layer.path, goal, f"spectrum says {layer.target}")


def _afresh(settings: Settings, state: PolicyState, last: float | None) -> PolicyState:
    """Forget the losses of the function that was, but for their mean."""
    rest = settings.cooldown
    return replace(state, losses=(), last=last, reference=None, stale=0, rest=rest, settled=False)


def _mean(state: PolicyState) -> float:
    """Return the moving loss where there is known to be one."""
    moving = state.moving_loss
    assert moving is not None
    return moving
