"""The actions of a manager on a model: one method each, through surgery, one event each."""

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from plastic_core import Factors, RankLayer

from plastic_runtime.log.events import EventLog, PlasticityEvent
from plastic_runtime.manager.state import Change, Guard, PolicyState
from plastic_runtime.manager.targets import plastic_spectrum
from plastic_runtime.sleep.sleep_dict import SleepDict
from plastic_runtime.surgery import ranks
from plastic_runtime.surgery.byte_count import ByteCount
from plastic_runtime.surgery.gauge import Gauge
from plastic_runtime.surgery.gradient_factors import GradientFactors, gradient_factors
from plastic_runtime.surgery.growth import Directions, steepest_directions
from plastic_runtime.surgery.probe_loss import Loss, find_rank_layers
from plastic_runtime.surgery.reallocation import Inventory, finite_gradient
from plastic_runtime.surgery.rewriting import regauge


class _Place(TypedDict):
    path: str
    optimizer: optim.Optimizer | None


@dataclass
class Actions:
    """Changes ranks, together with optimizer state and sleeping components, and logs it.

    Attributes:
        model: Its ``RankLayer`` modules change.
        optimizer: Its state follows; None if nothing trains.
        loss: Probe that points growth along the gradient; None for random growth.
        log: Every action adds one event.
        soft_threshold: Shrink by soft-thresholding instead of truncating.
        seed: The seed of random growth.
        sleep: Where parked components are.
        gauge: How new components are written; None for ``S = 0``.
        counted: How bytes awake are counted; None for those of the factors.
        state: What the policy knows: an event tells its step and its moving loss.
        training_step: The newest training step that the manager was told of; None before any.
        since: When what the next event tells of began, in seconds of ``time.perf_counter``.
    """

    model: nn.Module
    optimizer: optim.Optimizer | None
    loss: Loss | None
    log: EventLog
    soft_threshold: bool
    seed: int
    sleep: SleepDict = field(default_factory=SleepDict)
    gauge: Gauge | None = None
    counted: ByteCount | None = None
    state: PolicyState = field(default_factory=PolicyState)
    training_step: int | None = None
    since: float = 0.0

    @cached_property
    def layers(self) -> dict[str, RankLayer]:
        """The layers by path; a walk over a large model is not free."""
        return find_rank_layers(self.model)

    @cached_property
    def count(self) -> ByteCount:
        """The bytes of ranks, by default those of the factors."""
        sizes = {path: layer.bytes_per_rank for path, layer in self.layers.items()}
        return self.counted or ByteCount(sizes)

    def begin(self) -> None:
        """Start the clock of a decision."""
        self.since = time.perf_counter()

    def ranks(self) -> dict[str, int]:
        """Return the rank of every layer by path."""
        return {path: layer.rank for path, layer in self.layers.items()}

    @property
    def bytes_awake(self) -> int:
        """Bytes of all layers at their ranks."""
        return self.count(self.ranks())

    def layer(self, path: str) -> RankLayer:
        """Return the layer at a path.

        Raises:
            ValueError: If there is none; names those there are.
        """
        if path not in self.layers:
            raise ValueError(f"`path` must be one of {sorted(self.layers)}, got {path!r}.")
        return self.layers[path]

    def gradients(self) -> dict[str, GradientFactors]:
        """Return the gradients of the layers on the probe batch; none without one.

        Raises:
            ValueError: If it is not finite; names the layer.
        """
        gradients = {} if self.loss is None else gradient_factors(self.model, self.loss)
        return {path: finite_gradient(path, gradients) for path in gradients}

    def grow(
        self,
        change: Change,
        score: float | None,
        gradients: Mapping[str, GradientFactors],
    ) -> PlasticityEvent:
        """Grow a layer to ``change.rank``, along the gradient or, without one, at random."""
        path, layer = change.path, self.layer(change.path)
        before, k = layer.rank, change.rank - layer.rank
        if path in gradients and 0 <= k <= layer.max_rank - before:
            directions = steepest_directions(layer, gradients[path], k)
            fresh = self._fresh(layer, directions, change.rank)
            ranks.extend(layer, fresh, **self._at(path))
        else:
            entropy = [self.seed, self.state.step, before, zlib.crc32(path.encode())]
            key = mx.random.key(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
            ranks.grow(layer, k, **self._at(path), key=key)
        return self.record("grow", path, before=before, why=change.why, score=score)

    def shrink(
        self, change: Change, score: float | None
    ) -> tuple[PlasticityEvent, tuple[int, ...]]:
        """Shrink a layer to ``change.rank``; return the event and the ids of what was parked."""
        path, layer = change.path, self.layer(change.path)
        before, asleep = layer.rank, len(self.sleep.ids(path))
        if self.soft_threshold and 0 <= change.rank < before:
            tau = float(plastic_spectrum(layer)[change.rank])
            error = ranks.soft_threshold(layer, tau, **self._at(path), sleep=self.sleep)
        else:
            error = ranks.shrink_to(layer, change.rank, **self._at(path), sleep=self.sleep)
        why = f"{change.why}, |dW| = {error:.2g}"
        event = self.record("shrink", path, before=before, why=why, score=score)
        return event, self.sleep.ids(path)[asleep:]

    def wake(
        self,
        path: str,
        ids: Sequence[int],
        *,
        why: str,
        score: float | None = None,
        guard: Guard | None = None,
    ) -> PlasticityEvent:
        """Wake components of a layer, the first of ``ids`` first."""
        layer = self.layer(path)
        before = layer.rank
        ranks.wake(layer, ids, **self._at(path), sleep=self.sleep)
        return self.record("wake", path, before=before, why=why, score=score, guard=guard)

    def _at(self, path: str) -> _Place:
        """Return what every change of a layer is told besides the layer."""
        return {"path": path, "optimizer": self.optimizer}

    def _fresh(self, layer: RankLayer, directions: Directions, rank: int) -> Factors:
        """Components that change nothing yet, written in the gauge if there is one."""
        U, Vh = (mx.array(part).astype(layer.U.dtype) for part in directions)
        if self.gauge is not None:
            return self.gauge.fresh(layer, Vh, rank)
        return Factors(U, mx.zeros(len(Vh), layer.S.dtype), Vh)

    def bring_to_rank(
        self, path: str, rank: int, inventory: Inventory, gauge: Gauge
    ) -> list[PlasticityEvent]:
        """Bring a layer to a rank: park its worst components, wake its most useful sleepers."""
        layer, before = self.layer(path), self.layer(path).rank
        awake, ids = inventory.chosen(rank)
        events = []
        if awake < before:
            ranks.shrink_along(
                layer, inventory.components, awake, gauge=gauge, **self._at(path), sleep=self.sleep
            )
            worth = float(np.square(inventory.components[1][awake:]).sum()) / 2
            why = f"less per byte than elsewhere, worth {worth:.2g}"
            events.append(self.record("shrink", path, before=before, why=why, score=worth))
        if ids:
            gain = sum(inventory.gains[inventory.asleep.index(i)] for i in ids)
            why = f"more per byte than elsewhere, {len(ids)} wake"
            events.append(self.wake(path, ids, why=why, score=gain))
            regauge(layer, gauge, **self._at(path))
        return events

    def record(
        self,
        action: str,
        path: str = "",
        *,
        why: str,
        before: int | None = None,
        score: float | None = None,
        guard: Guard | None = None,
    ) -> PlasticityEvent:
        """Log one event; without a path it is about the whole model and its total rank.

        What judges a shrink names its guard: the event carries the loss before it and that now.
        """
        layers, step, validation = self.layers, self.training_step, self.state.step
        rank = layers[path].rank if path else sum(layer.rank for layer in layers.values())
        began, self.since = self.since, time.perf_counter()
        event = PlasticityEvent(
            time=time.time(),
            step=validation if step is None else step,
            layer=path,
            action=action,
            rank_before=rank if before is None else before,
            rank_after=rank,
            why=why,
            score=score,
            bytes_awake=self.bytes_awake,
            bytes_asleep=self.sleep.nbytes,
            loss_before=guard.before if guard else self.state.moving_loss,
            loss_after=self.state.moving_loss if guard else None,
            validation=None if step is None else validation,
            seconds=self.since - began,
        )
        self.log.append(event)
        return event
