"""The course of a run: mlx-lm's steps, and what happens between two of them."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from plastic_core import RankLayer
from plastic_core.files import FormatError, sync_path
from plastic_runtime import (
    ByteCount,
    EventLog,
    Generations,
    Noted,
    PlasticityCallback,
    PlasticityManager,
    ResumableBatches,
    Track,
    append_loss,
    find_rank_layers,
    format_bytes,
    read_losses,
)
from plastic_runtime.distributed import Team
from plastic_runtime.training import AlikeRun, share_of, weighted

from plastic_export.estimate.limits import Say
from plastic_export.folder.run_files import DIAL, EVENTS, GENERATIONS, LOSSES
from plastic_export.process.interruption import between, saying_when_interrupted
from plastic_export.training.best_state import BestState, Validated
from plastic_export.training.data.training_data import TrainingData
from plastic_export.training.forgetting.base_text import BaseText
from plastic_export.training.forgetting.dial import SCALES, DialPoint, SDial, turned_within
from plastic_export.training.forgetting.dial_file import DialFile
from plastic_export.training.forgetting.remembering import Remembering
from plastic_export.training.settings import GAUGE, PROBE, TrainingOptions

_LOGS = (EVENTS, LOSSES)
_NOTHING = {name: 0 for name in _LOGS}


class DivergedError(ValueError):
    """A loss was NaN or infinite: no rank was changed and no state saved since.

    Examples:
        >>> issubclass(DivergedError, ValueError)
        True
    """


class Listener(Protocol):
    """Hears of losses as mlx-lm's ``TrainingCallback`` does; what it prints is not shown.

    Examples:
        >>> class Ranks:
        ...     def __init__(self):
        ...         self.found = []
        ...     def on_train_loss_report(self, info): ...
        ...     def on_val_loss_report(self, info):
        ...         self.found.append((info["iteration"], info["total_rank"]))
        >>> few, ranks = TrainingOptions(steps=2, batch=2, window=32, evaluate_every=2), Ranks()
        >>> result = train("SRC", "data", "NEW", few, include=["*.0.*.q_proj"], listener=ranks)
        >>> ranks.found
        [(0, 8), (2, 8)]
    """

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        """Hear of a training loss: ``iteration``, ``train_loss``, and what else mlx-lm tells."""

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        """Hear of a validation loss: ``iteration``, ``val_loss``, ``total_rank``, bytes."""


class Course:
    """The parts of a run, and what happens to them between two steps.

    Of several processes each has all parts, and its share of the rows of every batch. The first one
    alone reads and writes the folder of the run, changes ranks and decides.
    """

    def __init__(
        self,
        out: Path,
        model: nn.Module,
        rows: TrainingData,
        known: BaseText,
        training: TrainingOptions,
        count: ByteCount,
        identity: Mapping[str, Any],
        say: Say,
        track: Track,
        listener: Listener | None,
        team: Team,
    ) -> None:
        from mlx_lm.tuner import trainer

        self.trainer = trainer
        self.out, self.model, self.rows, self.training, self.say = out, model, rows, training, say
        self.known, self.track, self.listener, self.team = known, track, listener, team
        self.order = ResumableBatches(trainer.iterate_batches, seed=training.seed)
        self.optimizer = training.build_optimizer()
        probed = min(max(PROBE, training.batch), len(rows.train))
        probe = next(self.order(rows.train, probed, training.window))
        self.probe_loss: Callable[[], mx.array] = lambda: trainer.default_loss(model, *probe)[0]
        schedule = training.schedule(count(ranks_of(find_rank_layers(model))))
        self.manager = PlasticityManager(
            model,
            self.optimizer,
            loss=self.probe_loss,
            log=EventLog(out / EVENTS if team.leads else None),
            seed=training.seed,
            gauge=GAUGE,
            schedule=schedule,
            count=count,
            max_bytes=None if schedule else training.max_bytes,
            **training.plasticity,
        )
        self.alike = AlikeRun(team, out, model, self.optimizer, self.manager)
        self.callback = PlasticityCallback(
            self.alike, accumulation=training.accumulate, wrapped=self
        )
        self.generations = Generations(out / GENERATIONS, identity)
        self.best, self.count = BestState(out, identity), count
        self.start = 0
        self.is_over = False
        self.train_loss: float | None = None
        self.tokens_per_second = 0.0

    def go(self) -> int | None:
        """Train from the newest state to the end; return the step of that state."""
        mx.random.seed(self.training.seed)
        resumed: int | None = self.team.told(self._taken_up() if self.team.leads else None)
        self.alike.hand_out()
        self._judge()
        step = resumed or 0
        self.start = self.order.position = self.callback.start = step
        remaining = self.training.steps - step
        if remaining > 0 and not self.is_over:
            with saying_when_interrupted(lambda: ["the same command goes on with it"]):
                self._train(remaining, evaluated=resumed is not None)
                if not self.is_over:
                    self._evaluate(self.training.steps, last=True)
        return resumed

    def _taken_up(self) -> int | None:
        """Put the newest state back, and the logs to where it was saved; return its step."""
        state = self.generations.load(self.model, self.optimizer, self.manager)
        step, sizes = state or (0, _NOTHING)
        _cut_logs(self.out, sizes)
        self.best.go_on()
        if state is None:
            return None
        self.say(f"going on from step {step}")
        return step

    def finish(self) -> Validated:
        """Put into the model what the adapters are written from; return which state that is."""
        validated = _validated(self.out / LOSSES)
        last, kept = max(validated), self.best.kept
        if self.training.state == "last" or kept is None:
            return last
        self.best.put_back(self.model, self.manager)
        lowest = min(validated, key=lambda one: one.loss)
        if lowest.loss < kept.loss:
            self.say(
                f"warning: the validation loss was lower after step {lowest.step} "
                f"({lowest.loss:.4f}), in a state that is larger than the adapters may be"
            )
        if kept.step < last.step:
            self.say(
                f"the validation loss was lowest after step {kept.step} ({kept.loss:.4f}, at the "
                f"end {last.loss:.4f}): the adapters hold that state"
            )
        return kept

    def turn_down(self) -> tuple[DialPoint, ...]:
        """Turn every S down as far as the limit on forgetting asks; return and keep all points."""
        limit, text = self.training.forget, self.known.measured
        if limit is None or text is None:
            return ()
        dial = SDial(self.model, find_rank_layers(self.model), text, self.validation_loss)
        points = dial.points(SCALES)
        found = turned_within(dial, points, limit), *points
        DialFile(limit, found).write(self.out / DIAL)
        return found

    def _judge(self) -> None:
        """Find whether patience has run out: the first process knows."""
        patience = self.training.patience
        self.is_over = self.team.told(
            patience is not None and self.best.validations_since >= patience
        )

    def _train(self, steps: int, *, evaluated: bool) -> None:
        remembering = self._remembering()
        loss = self.trainer.default_loss
        if self.team.size > 1:
            loss = weighted(loss)
        with tempfile.TemporaryDirectory() as folder:
            arguments = self.trainer.TrainingArgs(
                batch_size=self.training.batch,
                iters=steps,
                val_batches=0,
                steps_per_report=self.training.report_every,
                steps_per_save=steps + 1,
                max_seq_length=self.training.window,
                grad_checkpoint=self.training.grad_checkpoint,
                grad_accumulation_steps=self.training.accumulate,
                adapter_file=str(Path(folder, "unused.safetensors")),
            )
            with (
                contextlib.closing(self._steps(steps)) as numbers,
                self._checkpointing(),
                self.team.connected(),
            ):
                self.trainer.train(
                    self.model,
                    self.optimizer,
                    self.rows.train,
                    [],  # mlx-lm before 0.30 asks for rows to validate on
                    args=arguments,
                    loss=remembering.beside(loss) if remembering else loss,
                    iterate_batches=self.callback.between(
                        partial(
                            self._batches, numbers, evaluated=evaluated, remembering=remembering
                        )
                    ),
                    training_callback=self.callback,
                )

    @contextlib.contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Undo after the block what mlx-lm does to the class of the blocks to save memory."""
        if not self.training.grad_checkpoint:
            yield
            return
        model: Any = self.model
        kind = type(model.layers[0])
        call = kind.__call__
        try:
            yield
        finally:
            kind.__call__ = call

    def _steps(self, count: int) -> Generator[int, None, None]:
        """Yield the numbers of the steps to come, and show how far they are."""
        yield from self.track(Noted(range(self.start, self.start + count), self._note), "training")

    def _note(self) -> str:
        if self.train_loss is None:
            return ""
        return f"loss {self.train_loss:.4f}, {self.tokens_per_second:.0f} tokens/s"

    def _remembering(self) -> Remembering | None:
        """Return what the base predicts on its text, if the run is to remember it."""
        text, weight = self.known.remembered, self.training.remember
        if text is None or weight is None:
            return None
        layers, seed = find_rank_layers(self.model), self.training.seed
        return Remembering(self.model, layers, text, weight=weight, seed=seed, track=self.track)

    def _batches(
        self,
        steps: Iterator[int],
        *args: Any,
        evaluated: bool,
        remembering: Remembering | None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Yield the training's batches, with all that has to happen between two steps."""
        for step, batch in zip(steps, self._order(*args, **kwargs), strict=False):
            if step % self.training.interval == 0 and not (evaluated and step == self.start):
                self._evaluate(step)
            if self.is_over:
                return
            yield (*batch, *remembering.window(step)) if remembering else batch

    def _order(self, *args: Any, comm_group: Any = None, **kwargs: Any) -> Iterator[Any]:
        """Yield mlx-lm's batches, or the share that this process has in each of them."""
        rank, size = self.team.rank, self.team.size
        for batch in between(self.order(*args, **kwargs)):
            if size == 1:
                yield batch
                continue
            rows, lengths = batch
            share = share_of(rows, lengths, rank, size)
            yield share if kwargs.get("loop", False) else share[:2]

    def _evaluate(self, step: int, *, last: bool = False) -> None:
        """Validate, let ranks change unless nothing would follow, and save."""
        loss = self._validated_together()
        _check_finite("validation", loss, step)
        if self.team.leads:
            self._put_on_record(step, loss)
        if not last:
            self.callback.on_val_loss_report({"iteration": step - self.start, "val_loss": loss})
        if self.team.leads:
            sizes = _synced_sizes(self.out)
            self.generations.save(step, self.model, self.optimizer, self.manager, extra=sizes)
            self.say(self._line(step, loss))
        self._judge()

    def _put_on_record(self, step: int, loss: float) -> None:
        """Log a validation loss, and keep the state if it is the best one that fits."""
        append_loss(self.out / LOSSES, step, "valid", loss)
        if self.listener is not None:
            self.listener.on_val_loss_report({"iteration": step, "val_loss": loss} | self._sizes())
        if self._fits():
            self.best.offer(Validated(step, loss), self.model, self.manager)

    def validation_loss(self) -> float:
        """Return the validation loss of the model as it is, in nats per token.

        In the first process alone, while the others `answer`: they get its factors before.
        """
        self.team.told(True)
        self._share_factors()
        return self._validated_together()

    def answer(self) -> None:
        """Help the first process to validate, in all others, until it is done."""
        while self.team.told(None):
            self._share_factors()
            self._validated_together()

    def done(self) -> None:
        """Let the others go on, in the first process, once nothing is left to validate."""
        self.team.told(False)

    def _share_factors(self) -> None:
        """Give all layers of the run the factors that they have in the first process."""
        if self.team.size == 1:
            return
        layers = find_rank_layers(self.model)
        told = self.team.told_arrays(
            {f"{path}.{i}": f for path in layers for i, f in enumerate(layers[path].factors())}
        )
        for path, layer in layers.items():
            layer.set_factors(*(told[f"{path}.{i}"] for i in range(3)))

    def _validated_together(self) -> float:
        """Return the validation loss, of which every process measures its share."""
        with self.team.connected():
            loss: float = self.trainer.evaluate(
                self.model,
                self.rows.valid,
                min(self.training.batch, len(self.rows.valid)),
                self.training.validated,
                self.training.window,
                iterate_batches=self._order,
            )
        self.model.train()
        return float(self.team.told(loss))

    def _fits(self) -> bool:
        """Tell whether the adapters would obey the ceiling."""
        ceiling = self.training.max_bytes
        return ceiling is None or self.count(self.manager.ranks()) <= ceiling

    def on_train_loss_report(self, info: Mapping[str, Any]) -> None:
        """Put the training loss on record; the callback hands it on from mlx-lm."""
        step = int(info["iteration"])
        self.train_loss = float(info["train_loss"])
        self.tokens_per_second = float(info["tokens_per_second"])
        _check_finite("training", self.train_loss, step)
        if not self.team.leads:
            return
        append_loss(self.out / LOSSES, step, "train", self.train_loss)
        if self.listener is not None:
            self.listener.on_train_loss_report(dict(info))

    def on_val_loss_report(self, info: Mapping[str, Any]) -> None:
        """Do nothing: what follows a validation is done where it is made, between two steps."""

    def _sizes(self) -> dict[str, int]:
        """Return what a rank that adapts adds to the figures of a run."""
        awake, asleep = self.manager.bytes_awake, self.manager.bytes_asleep
        ranks = sum(self.manager.ranks().values())
        return {"total_rank": ranks, "bytes_awake": awake, "bytes_asleep": asleep}

    def _line(self, step: int, loss: float) -> str:
        ranks = self.manager.ranks().values()
        train = "      -" if self.train_loss is None else f"{self.train_loss:7.4f}"
        awake, asleep = format_bytes(self.manager.bytes_awake), self.manager.bytes_asleep
        return (
            f"step {step:>{len(str(self.training.steps))}}/{self.training.steps}"
            f"  train {train}  valid {loss:7.4f}  ranks {min(ranks)} to {max(ranks)}"
            f"  awake {awake}  asleep {format_bytes(asleep)}"
        )


def ranks_of(layers: Mapping[str, RankLayer]) -> dict[str, int]:
    """Return the rank of every layer by path."""
    return {path: layer.rank for path, layer in layers.items()}


def _check_finite(kind: str, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the {kind} loss is {loss} at step {step}: no rank was changed and nothing saved "
            "since the validation before; begin again with a lower learning rate"
        )


def _validated(losses: Path) -> list[Validated]:
    """Return the steps that were validated."""
    found = [(r.step, r.loss) for r in read_losses(losses) if r.kind == "valid"]
    return [Validated(step, loss) for step, loss in found if loss is not None]


def _synced_sizes(out: Path) -> dict[str, int]:
    """Return the sizes of the logs, synced before a state that counts on them."""
    sizes = {}
    for name in _LOGS:
        file = out / name
        file.touch()
        sync_path(file)
        sizes[name] = file.stat().st_size
    return sizes


def _cut_logs(out: Path, sizes: Mapping[str, int]) -> None:
    """Take from the logs what happened after the state that the run goes on from."""
    for name in _LOGS:
        file = out / name
        file.touch()
        if file.stat().st_size < sizes[name]:
            reason = f"{file.stat().st_size} bytes, and {sizes[name]} when the state was saved"
            raise FormatError.about(file, reason, "put the log back, or name another folder")
        os.truncate(file, sizes[name])
