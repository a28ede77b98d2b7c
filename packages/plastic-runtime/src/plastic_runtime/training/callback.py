"""A manager inside ``mlx_lm.tuner.trainer.train``: between two updates, never inside one."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from plastic_runtime.log.events import PlasticityEvent

Info = dict[str, Any]
Batches = Callable[..., Iterator[Any]]


class Changing(Protocol):
    """What changes ranks: a manager, or what stands for it."""

    training_step: int | None

    def step(self, val_loss: float) -> list[PlasticityEvent]: ...

    def advance(self, step: int) -> list[PlasticityEvent]: ...

    def report(self, why: str) -> PlasticityEvent | None: ...


class TrainingCallback(Protocol):
    """The two hooks of mlx-lm's class of this name."""

    def on_train_loss_report(self, train_info: Info) -> None: ...

    def on_val_loss_report(self, val_info: Info) -> None: ...


class PlasticityCallback:
    """A bridge that hands mlx-lm's validation losses to a manager, as ``training_callback``.

    Ranks change where no gradient is being accumulated: a loss that is reported between the
    steps of one update waits for its end. mlx-lm's trainer reports losses only every so many
    steps; with ``iterate_batches=callback.between(iterate_batches)`` the callback sees every step,
    so that nothing waits longer than it must, and a schedule of bytes is followed; reports of
    training losses then change nothing. Compiled steps, gradient checkpointing and quantised bases
    need nothing more. mlx-lm itself is not imported.

    Args:
        manager: A `PlasticityManager` that was given the same model and optimizer as the trainer.
        accumulation: ``TrainingArgs.grad_accumulation_steps``.
        start: Steps that the run had made before, where it goes on (`load_run`): mlx-lm counts
            from 1 again, while the schedule, the events and ``wrapped`` count from its beginning.
        wrapped: Another callback that every report goes on to, after the ranks have changed.

    Attributes:
        start: The same, to be set at any time before the training.

    Raises:
        ValueError: If ``accumulation`` is below 1, or ``start`` is negative.

    Examples:
        mlx-lm is told of it by ``train(..., training_callback=callback,
        iterate_batches=callback.between(iterate_batches))``.

        >>> model = nn.Sequential(RankLayer(mx.eye(2), mx.ones(2), mx.eye(2)))
        >>> manager = PlasticityManager(model)
        >>> callback = PlasticityCallback(manager, accumulation=4)
        >>> callback.on_val_loss_report({"iteration": 8, "val_loss": 2.5})
        >>> manager.moving_loss
        2.5
    """

    def __init__(
        self,
        manager: Changing,
        *,
        accumulation: int = 1,
        start: int = 0,
        wrapped: TrainingCallback | None = None,
    ) -> None:
        if accumulation < 1:
            raise ValueError(f"`accumulation` must be at least 1, got {accumulation}.")
        if start < 0:
            raise ValueError(f"`start` must not be negative, got {start}.")
        self.manager = manager
        self.accumulation = accumulation
        self.start = start
        self.wrapped = wrapped
        self._waiting: float | None = None
        self._sees_every_step = False

    def on_val_loss_report(self, val_info: Info) -> None:
        """Take in a validation loss; mlx-lm reports it before the step that follows."""
        info = self._counted_from_the_beginning(val_info)
        self._waiting = float(info["val_loss"])
        self._act(info["iteration"])
        if self.wrapped is not None:
            self.wrapped.on_val_loss_report(info)

    def on_train_loss_report(self, train_info: Info) -> None:
        """Act on a loss that waited; a training loss that is not finite changes nothing."""
        info = self._counted_from_the_beginning(train_info)
        loss = float(info["train_loss"])
        if not math.isfinite(loss):
            self._waiting = None
            self.manager.training_step = info["iteration"]
            self.manager.report(f"the training loss is {loss}: no change")
        if not self._sees_every_step:
            self._act(info["iteration"])
        if self.wrapped is not None:
            self.wrapped.on_train_loss_report(info)

    def between(self, iterate_batches: Batches) -> Batches:
        """Return the same batches, with a chance to change ranks before each of a training.

        Args:
            iterate_batches: Like mlx-lm's function of this name; a validation, which does not ask
                for ``loop=True``, passes through untouched.
        """

        def watched(*args: Any, **kwargs: Any) -> Iterator[Any]:
            batches = iterate_batches(*args, **kwargs)
            if not kwargs.get("loop", False):
                yield from batches
                return
            self._sees_every_step = True
            try:
                # A batch is asked for when all the steps before it are done.
                for done, batch in enumerate(batches, self.start):
                    self._act(done)
                    yield batch
            finally:
                self._sees_every_step = False

        return watched

    def _counted_from_the_beginning(self, info: Info) -> Info:
        return {**info, "iteration": self.start + int(info["iteration"])}

    def _act(self, done: int) -> None:
        """Let the manager change ranks, if no update is half done after ``done`` steps."""
        if (done - self.start) % self.accumulation:
            return
        if self._waiting is not None:
            loss, self._waiting = self._waiting, None
            self.manager.training_step = done
            self.manager.step(loss)
        self.manager.advance(done)
