"""A training run that several processes make together, alike in all of them to the last bit."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
import mlx.optimizers as optim
from plastic_core.files import FormatError, array_bytes

from plastic_runtime.distributed import DisagreementError, Team
from plastic_runtime.log import CHANGES
from plastic_runtime.log.events import PlasticityEvent
from plastic_runtime.manager.manager import PlasticityManager
from plastic_runtime.surgery.probe_loss import find_rank_layers
from plastic_runtime.training.saved_run import content_of_run, put_back

Digests = Mapping[str, str]
"""SHA-256 of the factors and the optimizer state of a layer, by path; of the rest under ``""``."""


class AlikeRun:
    """Stands for the manager of a run in all processes of a team.

    The first process decides and changes ranks; all others get the outcome bit for bit, within the
    same step: factors, optimizer state, sleepers. So no decision depends on the rounding of another
    machine. All processes make the same calls in the same order. A process alone has nothing to
    compare or to tell.

    Args:
        team: The processes.
        place: What they work on, for messages.
        model: The model of this process.
        optimizer: The one that trains it.
        manager: The manager of both; in the first process alone it acts.

    Examples:
        >>> from plastic_core import RankLayer
        >>> model = nn.Sequential(RankLayer(mx.eye(2), mx.ones(2), mx.eye(2)))
        >>> run = AlikeRun(Team(), Path("RUN"), model, None, PlasticityManager(model))
        >>> run.step(2.5)
        []
    """

    def __init__(
        self,
        team: Team,
        place: Path,
        model: nn.Module,
        optimizer: optim.Optimizer | None,
        manager: PlasticityManager,
    ) -> None:
        self._team, self._place = team, place
        self._model, self._optimizer, self._manager = model, optimizer, manager

    @property
    def training_step(self) -> int | None:
        """Steps of training made so far, see `PlasticityManager`."""
        return self._manager.training_step

    @training_step.setter
    def training_step(self, step: int | None) -> None:
        self._manager.training_step = step

    def step(self, val_loss: float) -> list[PlasticityEvent]:
        """Take in a validation loss, the same in all processes; change ranks if it is time to.

        Returns:
            What was done, in the first process; elsewhere nothing.

        Raises:
            DisagreementError: As `check`.
        """
        return self._made(lambda: self._manager.step(val_loss))

    def advance(self, step: int) -> list[PlasticityEvent]:
        """Follow the schedule, see `PlasticityManager.advance`.

        Returns:
            What was done, in the first process; elsewhere nothing.

        Raises:
            DisagreementError: As `check`.
        """
        if self._team.size > 1 and not self._manager.is_due(step):
            return []
        return self._made(lambda: self._manager.advance(step))

    def report(self, why: str) -> PlasticityEvent | None:
        """Log in the first process that no rank changes, and why."""
        return self._manager.report(why) if self._team.leads else None

    def hand_out(self) -> None:
        """Make all processes what the first one is.

        Cost:
            Each sends about twice the bytes of the factors, their optimizer state and the sleepers.
        """
        if self._team.size == 1:
            return
        arrays, run = content_of_run(self._model, self._optimizer, self._manager)
        run, arrays = self._team.told(run), self._team.told_arrays(arrays)
        put_back(self._place, arrays, run, self._model, self._optimizer, self._manager)

    def check(self) -> None:
        """Refuse to go on in all processes if one of them is not alike.

        Cost:
            A digest of the factors and their optimizer state.

        Raises:
            DisagreementError: Naming a process and a layer that differs.
        """
        if self._team.size == 1:
            return
        own = layer_digests(self._model, self._optimizer, self._manager)
        found = self._team.gathered({"host": socket.gethostname(), "digests": own})
        if (differing := first_difference([one["digests"] for one in found])) is None:
            return
        rank, layer = differing
        where = f"in the layer '{layer}'" if layer else "in the optimizer"
        reason = (
            f"process {rank} on {found[rank]['host']} has other numbers than process 0 {where}, "
            f"found after step {self.training_step or 0}"
        )
        remedy = "the newest state stays; go on with machines of one kind"
        raise DisagreementError(str(FormatError.about(self._place, reason, remedy)))

    def _made(self, change: Callable[[], list[PlasticityEvent]]) -> list[PlasticityEvent]:
        """Let the first process make a change, and give it to all if ranks have changed."""
        self.check()
        events = change() if self._team.leads else []
        if self._team.told(any(event.action in CHANGES for event in events)):
            self.hand_out()
            self.check()
        return events


def layer_digests(
    model: nn.Module, optimizer: optim.Optimizer | None, manager: PlasticityManager
) -> dict[str, str]:
    """Return what tells two states of a run apart, by layer. What sleeps is not in it.

    Examples:
        >>> from plastic_core import RankLayer
        >>> model = nn.Sequential(RankLayer(mx.eye(2), mx.ones(2), mx.eye(2)))
        >>> sorted(layer_digests(model, None, PlasticityManager(model)))
        ['', 'layers.0']
    """
    arrays, _ = content_of_run(model, optimizer, manager)
    paths, digests = find_rank_layers(model).keys(), dict[str, Any]()
    for name in sorted(name for name in arrays if name.startswith(("model.", "optimizer."))):
        digest = digests.setdefault(_layer_of(name, paths), hashlib.sha256())
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(array_bytes(arrays[name]).data)
    return {layer: digest.hexdigest() for layer, digest in digests.items()}


def first_difference(found: Sequence[Digests]) -> tuple[int, str] | None:
    """Return the first process that differs from process 0, and the first layer where. Pure.

    Examples:
        >>> first_difference([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}])
        (1, 'b')
    """
    for rank, digests in enumerate(found):
        for layer in sorted(found[0].keys() | digests.keys(), key=lambda path: (not path, path)):
            if digests.get(layer) != found[0].get(layer):
                return rank, layer
    return None


def _layer_of(name: str, paths: Collection[str]) -> str:
    """Return the path of the layer that an array belongs to, empty if to none."""
    parts = name.split(".")
    inner = (
        ".".join(parts[start:end])
        for start in range(1, len(parts))
        for end in range(len(parts), start, -1)
    )
    return next((path for path in inner if path in paths), "")
