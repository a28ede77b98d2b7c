"""The manager: watches the validation loss, decides by the policy, acts through surgery."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from plastic_select.rules import Rule

from plastic_runtime.log.events import EventLog, PlasticityEvent
from plastic_runtime.manager.actions import Actions
from plastic_runtime.manager.policy import (
    decide,
    most_added,
    most_useful,
    rank_changed,
    watch,
    woken,
)
from plastic_runtime.manager.state import Change, Guard, PolicyState, Settings
from plastic_runtime.manager.survey import SCORES, benefits, layer_views
from plastic_runtime.manager.targets import RankTarget
from plastic_runtime.measure.grams import Gram
from plastic_runtime.sleep.sleep_dict import SleepDict
from plastic_runtime.surgery.byte_count import ByteCount
from plastic_runtime.surgery.gauge import Gauge
from plastic_runtime.surgery.moments import may_be_empty
from plastic_runtime.surgery.probe_loss import Loss
from plastic_runtime.surgery.reallocation import value_components
from plastic_runtime.surgery.schedule import Schedule, redistribute


class PlasticityManager:
    """Adapts the ranks of a model's ``RankLayer`` modules to its validation loss.

    Call :meth:`step` with every validation loss, between two optimizer steps. At a plateau the
    layers that matter most per byte grow and those that hold too much shrink; what the loss does
    next judges it, and what did not work is undone (``manager.policy``; a heuristic).
    Nothing is lost: what leaves a layer sleeps in ``sleep_dict``, bit for bit, with its
    optimizer state.

    Args:
        model: Any module; its ``RankLayer`` modules are managed, wherever they are.
        optimizer: The one that trains them; its state follows every change.
        loss: Evaluates the model on a probe batch and returns a scalar; not compiled. Scores
            layers, points growth along the gradient, measures what sleepers would bring. Without
            it layers are scored by how evenly their spectrum fills their rank, growth is random,
            and the largest sleepers wake first.
        strategy: How a spectrum names a rank: one of ``plastic_select.STRATEGIES`` or a rule of
            ``plastic_select.rules`` with numbers of its own, such as ``Stable(0.9)``. By their
            names ``"energy"`` and ``"activation"`` keep 0.99 of the energy of the plastic part
            and of its output. ``"threshold"`` rarely shrinks: beyond the components of the
            plastic part it sees no noise.
        target_compression: Fraction in [0, 1) of a dense matrix's parameters that a layer's
            factors must save; by default they may not be larger than the dense matrix.
        score: How ``loss`` scores layers: ``"gradient"``, ``"relevance"``, or ``"descent"``, by
            how much a new component is predicted to lower it.
        grams: Input Gram of every layer by path (``input_grams``), for a rule that needs it:
            ``"activation"``.
        soft_threshold: Shrink by soft-thresholding the spectrum, which also lowers what stays
            awake and so is not wholly undone by waking, instead of by truncating it.
        log: A file to append one JSON line per event to, or an ``EventLog``.
        seed: The seed of the random directions.
        sleep: Where components sleep: a ``SleepStore`` keeps them on disk.
        schedule: Bytes that may be awake over the steps; then it alone changes ranks, in
            :meth:`advance`, and validation losses are only kept on record.
        gauge: How factors are written, the one that was given to ``attach``: new components and
            reallocated layers follow it. By default new components enter with ``S = 0``.
        count: How bytes awake are counted, those of ``max_bytes``, the schedule and the events:
            as the file that is made of the components counts them, say. By default the bytes of
            the factors.
        **numbers: The fields of ``Settings``, such as ``patience`` and ``max_bytes``.

    Raises:
        ValueError: If the model has no ``RankLayer``, an argument is out of range, a Gram is
            missing, or more than ``max_bytes`` are awake.

    Note:
        Most steps cost nothing. A plateau costs one backward pass of ``loss`` for the scores of
        all layers and for growth (``"relevance"`` takes one more), and an eigendecomposition of
        the order of the rank per layer; a waking costs one backward pass for all layers under
        guard.

    Examples:
        >>> model = nn.Sequential(RankLayer(mx.eye(4, 2), mx.ones(2), mx.eye(2, 4)))
        >>> manager = PlasticityManager(model, window=1, patience=1, cooldown=0, k=1)
        >>> [event.action for loss in (2.0, 2.0) for event in manager.step(loss)]
        ['grow']
        >>> manager.ranks(), manager.bytes_awake
        ({'layers.0': 3}, 108)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | None = None,
        *,
        loss: Loss | None = None,
        strategy: str | Rule = "stable",
        target_compression: float = 0.0,
        score: str = "gradient",
        grams: Mapping[str, Gram] | None = None,
        soft_threshold: bool = False,
        log: str | os.PathLike[str] | EventLog | None = None,
        seed: int = 0,
        sleep: SleepDict | None = None,
        schedule: Schedule | None = None,
        gauge: Gauge | None = None,
        count: ByteCount | None = None,
        **numbers: Any,
    ) -> None:
        self.settings = Settings(**numbers)
        self.target = RankTarget.of(strategy, target_compression)
        self.score = score
        self.grams = dict(grams or {}) if self.target.rule.needs_gram else {}
        log = log if isinstance(log, EventLog) else EventLog(log)
        sleep = SleepDict() if sleep is None else sleep
        self._act = Actions(model, optimizer, loss, log, soft_threshold, seed, sleep, gauge, count)
        self.schedule = schedule
        self.gauge = gauge
        self._advanced = 0
        self._check()

    def step(self, val_loss: float | mx.array) -> list[PlasticityEvent]:
        """Take in a validation loss; change ranks if it is time to.

        Args:
            val_loss: A scalar. NaN or infinite changes nothing and is reported as an event.

        Returns:
            What was done, one event per decision; mostly nothing.
        """
        self._act.begin()
        loss = float(val_loss)
        if not math.isfinite(loss):
            return [self.report(f"the validation loss is {loss}: no change")]
        guard = self._act.state.guard
        verdict, self._act.state = watch(self.settings, self._act.state, loss)
        if self.schedule is not None:
            return []
        if verdict == "plateau":
            return self._change()
        if verdict == "wake" and guard is not None:
            return self._wake(guard)
        if verdict == "keep" and guard is not None:
            return [self._keep(path, guard) for path in sorted(guard.parked)]
        return []

    def advance(self, step: int) -> list[PlasticityEvent]:
        """Follow the schedule: change ranks if a reallocation is due after ``step`` steps.

        Call it between two updates, once for every number of steps; a number that was seen
        before changes nothing. Without a schedule it does nothing. A last reallocation that could
        not price anything is made up for at a later step.
        """
        schedule = self.schedule
        if schedule is None or step <= self._advanced:
            return []
        self.training_step = step
        if not self.is_due(step):
            return []
        self._advanced = step
        return self.reallocate(schedule.budget(step))

    def is_due(self, step: int) -> bool:
        """Tell whether the schedule asks for a reallocation after ``step`` steps.

        It depends on the schedule and the ranks alone.
        """
        schedule = self.schedule
        if schedule is None:
            return False
        missed = step > schedule.end and self.bytes_awake > schedule.last
        return schedule.due(step) or missed

    def reallocate(self, max_bytes: int) -> list[PlasticityEvent]:
        """Keep awake, over all layers, what the loss can least do without in ``max_bytes``.

        Every component is priced by what leaving it out is predicted to cost the loss on the
        probe batch, every sleeper by what its waking would gain (``value_components``); the
        budget is then spent as well as can be. What leaves sleeps with its optimizer state. The
        layers that change are written in ``gauge``. Every layer keeps one component; where
        ``count`` gives one rank to all, layers may lose all of them, if the optimizer can train
        what is empty. Where all fits and nothing sleeps there is nothing to choose, and nothing is
        priced.

        Args:
            max_bytes: The budget for the factors of all layers together.

        Returns:
            One event per change; a single ``"keep"`` where the probe's loss or gradient is not
            finite, and then nothing has changed.

        Raises:
            ValueError: If the manager has no ``loss``, or one component per layer takes more.
        """
        act = self._act
        if act.loss is None:
            raise ValueError("`loss` must be given to price components.")
        if not len(act.sleep) and self.bytes_awake <= max_bytes:
            return []
        act.begin()
        try:
            inventories = value_components(act.model, act.sleep, act.loss)
        except ValueError as error:
            return [act.record("keep", why=f"{error}: no change")]
        floor = 0 if act.count.one_rank and may_be_empty(act.optimizer) else 1
        holdings = [held.holding(path, floor=floor) for path, held in inventories.items()]
        ranks, gauge = redistribute(holdings, max_bytes, act.count), self.gauge or Gauge()
        events = [
            event
            for path, inventory in inventories.items()
            for event in act.bring_to_rank(path, ranks[path], inventory, gauge)
        ]
        if events:
            self._ranks_changed()
        return events

    def report(self, why: str) -> PlasticityEvent:
        """Log that no rank changes, and why; about the whole model."""
        self._act.begin()
        return self._act.record("keep", why=why)

    def grow(self, path: str, k: int) -> PlasticityEvent:
        """Grow one layer by ``k`` now; the next plateau judges it like any growth.

        Raises:
            ValueError: If there is no such layer, or no room in it or under ``max_bytes``.
        """
        self._act.begin()
        layer = self._act.layer(path)
        self._check_room(path, k, "`k`")
        before = layer.rank
        change = Change("grow", path, before + k, "asked for")
        event = self._act.grow(change, None, self._act.gradients())
        self._ranks_changed(grown={path: before})
        return event

    def shrink(self, path: str, rank: int) -> PlasticityEvent:
        """Shrink one layer to ``rank`` now, whatever its floor; a guard opens as on any shrink.

        Raises:
            ValueError: If there is no such layer or ``rank`` is not from 0 to its present rank.
        """
        self._act.begin()
        change = Change("shrink", path, rank, "asked for")
        event, ids = self._act.shrink(change, None)
        self._ranks_changed(parked={path: ids} if ids else None)
        return event

    def wake(self, path: str, ids: Sequence[int] | None = None) -> PlasticityEvent:
        """Wake components of one layer now, by default all; its rank becomes its floor.

        Raises:
            ValueError: If there is no such layer, nothing to wake, or no room in the layer or
                under ``max_bytes``.
        """
        self._act.begin()
        self._act.layer(path)
        ids = self.sleep_dict.ids(path) if ids is None else tuple(ids)
        self._check_room(path, len(set(ids) - self._guarded(path)), "the number of `ids`")
        event = self._act.wake(path, ids, why="asked for")
        self._woken({path: tuple(ids)})
        return event

    @property
    def sleep_dict(self) -> SleepDict:
        """The components asleep."""
        return self._act.sleep

    def ranks(self) -> dict[str, int]:
        """Return the rank of every managed layer by path."""
        return self._act.ranks()

    @property
    def bytes_awake(self) -> int:
        """Bytes of all managed layers, as ``count`` counts them."""
        return self._act.bytes_awake

    @property
    def bytes_asleep(self) -> int:
        """Bytes of the factors in ``sleep_dict``."""
        return self.sleep_dict.nbytes

    @property
    def events(self) -> list[PlasticityEvent]:
        """All events so far, oldest first."""
        return list(self._act.log)

    @property
    def training_step(self) -> int | None:
        """Steps of training made so far, for the events; None where nobody sets it."""
        return self._act.training_step

    @training_step.setter
    def training_step(self, step: int | None) -> None:
        self._act.training_step = step

    @property
    def moving_loss(self) -> float | None:
        """Mean of the last validation losses since the latest change."""
        return self._act.state.moving_loss

    @property
    def settled(self) -> bool:
        """Tell whether the latest plateau asked for no change."""
        return self._act.state.settled

    def state(self) -> dict[str, Any]:
        """Return what :meth:`load_state` needs to go on deciding the same, in JSON's types.

        The factors, the optimizer's state and ``sleep_dict`` are not in it (``save_run``).
        """
        return {
            "options": self._options(),
            "policy": self._act.state.as_dict(),
            "advanced": self._advanced,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`.

        Raises:
            ValueError: If the manager was made with other options; names them.
        """
        now, then = self._options(), state["options"]
        differing = [
            f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(now.keys() | then.keys())
            if now.get(name) != then.get(name)
        ]
        if differing:
            raise ValueError(f"`state` comes from other options: {'; '.join(differing)}.")
        self._act.state = PolicyState.from_dict(state["policy"])
        self._advanced = state["advanced"]

    def _options(self) -> dict[str, Any]:
        """Return all that decides besides model and data, in JSON's types."""
        options = {
            "score": self.score,
            "soft_threshold": self._act.soft_threshold,
            "seed": self._act.seed,
            "layers": sorted(self.ranks()),
            "schedule": None if self.schedule is None else asdict(self.schedule),
            "gauge": None if self.gauge is None else asdict(self.gauge),
        }
        bounded = self.schedule is not None or self.settings.max_bytes is not None
        if bounded and self._act.counted is not None:
            options["count"] = asdict(self._act.counted)
        return {**asdict(self.settings), **self.target.as_json(), **options}

    def _check(self) -> None:
        """Refuse what cannot work, before anything is trained."""
        paths = self.ranks()
        if not paths:
            raise ValueError("`model` must contain a RankLayer; see RankLayer.from_linear.")
        if self.score not in SCORES:
            raise ValueError(f"`score` must be one of {sorted(SCORES)}, got {self.score!r}.")
        missing = [path for path in paths if path not in self.grams]
        if missing and self.target.rule.needs_gram:
            raise ValueError(f"`grams` must hold the input Gram of '{missing[0]}': input_grams.")
        if self.schedule is not None:
            self._check_schedule(self.schedule)
        ceiling = self.settings.max_bytes
        if ceiling is not None and self.bytes_awake > ceiling:
            raise ValueError(
                f"`max_bytes` must be at least the {self.bytes_awake} bytes awake, got {ceiling}."
            )

    def _check_schedule(self, schedule: Schedule) -> None:
        """Refuse a schedule that could not be followed."""
        if self._act.loss is None:
            raise ValueError("`loss` must be given with a `schedule`: it prices the components.")
        paths = self._act.layers
        least = self._act.count(dict.fromkeys(paths, 1))
        if schedule.last < least:
            raise ValueError(
                f"`schedule` must end at {least} bytes or more, one component for each of the "
                f"{len(paths)} layers, got {schedule.last}; raise it or adapt fewer layers."
            )

    def _change(self) -> list[PlasticityEvent]:
        """Carry out the plan for a plateau."""
        act, settled = self._act, self._act.state.settled
        try:
            gradients = act.gradients()
        except ValueError as error:
            return [act.record("keep", why=f"{error}: no change")]
        layers = layer_views(
            act.model,
            target=self.target,
            score=self.score,
            loss=act.loss,
            gradients=gradients,
            grams=self.grams,
        )
        scores = {layer.path: layer.score for layer in layers}
        ranks = {layer.path: layer.rank for layer in layers}
        changes, self._act.state = decide(self.settings, self._act.state, layers, act.count)
        events, grown, parked = [], {}, {}
        for change in changes:
            if change.action == "grow":
                event = act.grow(change, scores[change.path], gradients)
                grown[change.path] = ranks[change.path]
            else:
                event, parked[change.path] = act.shrink(change, scores[change.path])
            events.append(event)
        if changes:
            self._ranks_changed(grown=grown, parked=parked)
        elif not settled:
            events.append(act.record("keep", why="plateau, no layer asks for change"))
        return events

    def _wake(self, guard: Guard) -> list[PlasticityEvent]:
        """Undo a harmful shrink: wake the sleepers that hold most of the benefit."""
        act = self._act
        benefit = benefits(act.model, act.sleep, guard.parked, act.loss)
        chosen = most_useful(benefit)
        ids = {
            path: tuple(i for i in chosen if i in parked)
            for path, parked in sorted(guard.parked.items())
        }
        ids = {path: waking for path, waking in ids.items() if waking}
        events = [
            act.wake(
                path,
                waking,
                why=f"the shrink hurt, {len(waking)} of {len(guard.parked[path])} wake",
                score=sum(benefit[i] for i in waking),
                guard=guard,
            )
            for path, waking in ids.items()
        ]
        self._woken(ids)
        return events

    def _ranks_changed(
        self,
        *,
        grown: Mapping[str, int] | None = None,
        parked: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Tell the policy what was changed; see ``rank_changed``."""
        act = self._act
        act.state = rank_changed(self.settings, act.state, grown=grown, parked=parked)

    def _woken(self, ids: Mapping[str, tuple[int, ...]]) -> None:
        """Tell the policy what woke: the ranks of these layers are floors from now on."""
        act = self._act
        floors = {path: act.layer(path).rank for path in ids}
        act.state = woken(self.settings, act.state, ids, floors)

    def _keep(self, path: str, guard: Guard) -> PlasticityEvent:
        """Report that a shrink did no harm."""
        why = f"no harm, {len(guard.parked[path])} sleep on"
        return self._act.record("keep", path, why=why, guard=guard)

    def _guarded(self, path: str) -> set[int]:
        """Return the sleepers of a layer that the guard may yet wake: their room is theirs."""
        guard = self._act.state.guard
        return set(guard.parked.get(path, ())) if guard else set()

    def _check_room(self, path: str, added: int, what: str) -> None:
        """Refuse what would exceed the ceiling, now or when what is under guard wakes."""
        ceiling, ranks = self.settings.max_bytes, self.ranks()
        if ceiling is None:
            return
        for other in self.sleep_dict.paths():
            ranks[other] += len(self._guarded(other))
        most = most_added(self._act.count, ranks, path, added, ceiling)
        if most < added:
            raise ValueError(f"{what} must be at most {most} under {ceiling} bytes, got {added}.")
