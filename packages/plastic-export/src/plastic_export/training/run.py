"""Train a checkpoint with ranks that follow the validation loss, inside mlx-lm's own trainer.

mlx-lm's ``train`` asks for a batch when all steps before it are done, so what happens between
two steps happens here where its batches come from: validation, changes of rank, saving.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from plastic_core import RankLayer, projections
from plastic_core.files import FormatError, sha256_file, sync_path
from plastic_core.layer import dense_weight
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
    untracked,
)

from plastic_export.adapters.adapter import Adapter
from plastic_export.adapters.base_name import name_of_base
from plastic_export.adapters.reading import read_adapter
from plastic_export.calibration.overflow import overflows
from plastic_export.calibration.text import Calibration
from plastic_export.calibration.tokens import TokenReader
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.warning import warn_about
from plastic_export.estimate.learning import foresee_learning
from plastic_export.estimate.limits import Say
from plastic_export.estimate.model_shape import ModelShape
from plastic_export.process.interruption import between, saying_when_interrupted
from plastic_export.training.adapters import count_run_bytes, write_adapters
from plastic_export.training.best_state import BestState, Validated
from plastic_export.training.data import TrainingData, read_training_data
from plastic_export.training.forgetting import (
    LENGTH,
    SCALES,
    WINDOWS,
    DialPoint,
    SDial,
    turned_within,
)
from plastic_export.training.history import History, read_history
from plastic_export.training.plastic_model import load_plastic_model
from plastic_export.training.run_folder import EVENTS, GENERATIONS, LOSSES, RunFile, claimed
from plastic_export.training.settings import GAUGE, PROBE, RANK, TrainingOptions
from plastic_export.training.starting_adapter import adapter_digest

DEFAULT = TrainingOptions()
_LOGS = (EVENTS, LOSSES)
_NOTHING = {name: 0 for name in _LOGS}


class DivergedError(ValueError):
    """A loss was NaN or infinite: no rank was changed and no state saved since.

    Examples:
        >>> issubclass(DivergedError, ValueError)
        True
    """


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        out: Its folder.
        adapter: Adapter of one rank, for mlx-lm's ``--adapter-path``.
        peft: The same in the form of PEFT.
        history: The history of the run.
        written: The state that both hold.
        dial: Both losses under factors on every ``S``, where a limit on what is forgotten was set;
            the first one is what was written.
        resumed: Step that the run went on from; None if it was not cut.

    Examples:
        >>> few = TrainingOptions(
        ...     steps=4, batch=2, window=32, rank=2, evaluate_every=2, evaluate_batches=2
        ... )
        >>> train("SRC", "data", "RUN", few).resumed  # which had finished: nothing is left to do
        4
    """

    out: Path
    adapter: Path
    peft: Path
    history: History
    written: Validated
    dial: tuple[DialPoint, ...]
    resumed: int | None


def train(
    src: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    training: TrainingOptions = DEFAULT,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    base_text: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    memory: int | None = None,
    say: Say = lambda line: None,
    track: Track = untracked,
) -> TrainedRun:
    """Fine-tune a checkpoint with a plastic part beside its frozen projections.

    ``out`` gets the logs (`report`), the newest states and the best one, and at the end two
    adapters of the best one. Called again
    with the same arguments after it was cut anywhere, it goes on, and what it writes is bit for
    bit what an undisturbed run writes (CPU, same versions and hardware).

    Args:
        src: Folder or Hub id; dense or quantised. Its own weights are never changed.
        data: Folder with ``train.jsonl`` and ``valid.jsonl`` in mlx-lm's formats.
        out: Folder of the run: new, empty, or of the same run.
        training: How to train.
        include: Glob patterns of the matrices to adapt; by default all projections.
        exclude: Glob patterns of matrices to leave alone.
        tokenizer: Folder or Hub id of the tokenizer; by default that of ``src``.
        revision: Commit, tag or branch of a Hub id.
        base_text: Text that the base knows, to measure forgetting on (``training.forget``); by
            default the texts of many kinds that come along.
        start: An adapter to go on from, see `read_adapter`: the run begins at the sum of the base
            and of it.
        memory: Bytes of memory that it may take; by default what the machine has.
        say: Takes one line about what it will take and one per validation.
        track: Wraps the steps, which are `Noted`: the newest training loss and tokens per second.

    Returns:
        Where things are and what happened.

    Raises:
        FormatError: If the checkpoint, the data or a saved state is damaged, or ``out`` is not
            ours, or of another run: names the difference.
        BusyError: If another process is training there.
        ValueError: If there is no layer to adapt, the ceiling is too low, or the work does not fit
            into memory.
        DivergedError: If a loss is NaN or infinite.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If the system refuses.

    Note:
        On the CPU weights are widened to float32, exactly, as mlx is slow in bfloat16 there.

    Examples:
        >>> few = TrainingOptions(
        ...     steps=2, batch=2, window=32, rank=2, evaluate_every=2, evaluate_batches=2
        ... )
        >>> result = train("SRC", "data", "NEW", few, include=["*.q_proj"])
        >>> print(result.adapter, result.history.steps)
        NEW/adapters 2
    """
    out = Path(out)
    with open_checkpoint(src, revision=revision) as checkpoint:
        _check_source(checkpoint)
        reader = TokenReader(checkpoint, None if tokenizer is None else Path(tokenizer))
        rows = read_training_data(
            Path(data),
            reader.tokenizer,
            batch=training.batch,
            window=training.window,
            mask_prompt=training.mask_prompt,
        )
        for each in (rows.train, rows.valid):
            for i in range(len(each)):
                reader.check(each[i][0][: training.window])
        overflows(checkpoint.folder, mx.array(rows.train[0][0][: training.window - 1])[None])
        patterns = {"include": include, "exclude": exclude}
        other = _other_text(reader, training, base_text)
        _foresee(checkpoint, rows, training, memory, say)
        begun = None if start is None else read_adapter(start, base=checkpoint)
        with _quiet():
            model, layers, notes = load_plastic_model(
                checkpoint, rows, training, include=include, exclude=exclude, start=begun
            )
        count = _adapter_count(layers, training)
        _check_ceiling(layers, count, training)
        base = name_of_base(checkpoint)
        for note in (*notes, *filter(None, [base.note])):
            say(note)
        run = RunFile(
            identity=_identity(checkpoint, rows, training, patterns, reader, begun)
            | other.identity,
            ranks=_ranks(layers),
            bytes_awake=count(_ranks(layers)),
            max_bytes=training.max_bytes,
        )
        with claimed(out, run), _quiet():
            course = _Run(out, model, rows, training, count, run.identity, say, track)
            resumed, written = course.go(), course.finish()
            dial = course.turn_down(other.tokens)
            _check_size(count(_ranks(layers)), training)
            adapter, peft = write_adapters(out, layers, base)
        return TrainedRun(out, adapter, peft, read_history(out), written, dial, resumed)


def _foresee(
    checkpoint: Checkpoint,
    rows: TrainingData,
    training: TrainingOptions,
    memory: int | None,
    say: Say,
) -> None:
    """Tell what the run will take, or refuse it."""
    shape, window = ModelShape.of(checkpoint), training.window
    lengths = [min(window, len(rows.train[i][0])) for i in range(len(rows.train))]
    mean = sum(lengths) / len(lengths)
    most = training.evaluate_batches if training.evaluate_batches > 0 else len(rows.valid)
    validated = min(most * training.batch, len(rows.valid))
    validations = training.steps // training.interval + 1
    foresee_learning(
        shape,
        learnt=training.steps * training.batch * mean,
        judged=validations * validated * mean,
        trained=True,
        rows=training.batch,
        length=max(lengths),
        disk=0,
        memory=memory,
        say=say,
    )


class _Run:
    """The parts of a run, and what happens to them between two steps."""

    def __init__(
        self,
        out: Path,
        model: nn.Module,
        rows: TrainingData,
        training: TrainingOptions,
        count: ByteCount,
        identity: Mapping[str, Any],
        say: Say,
        track: Track,
    ) -> None:
        from mlx_lm.tuner import trainer

        self.trainer = trainer
        self.out, self.model, self.rows, self.training, self.say = out, model, rows, training, say
        self.track = track
        self.order = ResumableBatches(trainer.iterate_batches, seed=training.seed)
        self.optimizer = training.build_optimizer()
        probed = min(max(PROBE, training.batch), len(rows.train))
        probe = next(self.order(rows.train, probed, training.window))
        schedule = training.schedule(count(_ranks(find_rank_layers(model))))
        self.manager = PlasticityManager(
            model,
            self.optimizer,
            loss=lambda: trainer.default_loss(model, *probe)[0],
            log=EventLog(out / EVENTS),
            seed=training.seed,
            gauge=GAUGE,
            schedule=schedule,
            count=count,
            max_bytes=None if schedule else training.max_bytes,
            **training.plasticity,
        )
        self.callback = PlasticityCallback(self.manager, accumulation=training.accumulate)
        self.generations = Generations(out / GENERATIONS, identity)
        self.best, self.count = BestState(out, identity), count
        self.start = 0
        self.train_loss: float | None = None
        self.tokens_per_second = 0.0

    def go(self) -> int | None:
        """Train from the newest state to the end; return the step of that state."""
        mx.random.seed(self.training.seed)
        parts = self.model, self.optimizer, self.manager
        state = self.generations.load(*parts)
        step, sizes = state or (0, _NOTHING)
        _cut_logs(self.out, sizes)
        self.best.go_on()
        if state:
            self.say(f"going on from step {step}")
        self.start = self.order.position = step
        remaining = self.training.steps - step
        if remaining > 0 and not self._is_over():
            with saying_when_interrupted(lambda: ["the same command goes on with it"]):
                self._train(remaining, evaluated=state is not None)
                if not self._is_over():
                    self._evaluate(self.training.steps, last=True)
        return step if state else None

    def finish(self) -> Validated:
        """Put into the model what the adapters are written from; return which state that is."""
        last, kept = _last_validated(self.out / LOSSES), self.best.kept
        if self.training.state == "last" or kept is None:
            return last
        self.best.put_back(self.model, self.manager)
        if kept.step < last.step:
            self.say(
                f"the validation loss was lowest after step {kept.step} ({kept.loss:.4f}, at the "
                f"end {last.loss:.4f}): the adapters hold that state"
            )
        return kept

    def turn_down(self, other: mx.array | None) -> tuple[DialPoint, ...]:
        """Turn every S down as far as the limit on forgetting asks; return all points measured."""
        limit = self.training.forget
        if limit is None or other is None:
            return ()
        dial = SDial(self.model, find_rank_layers(self.model), other, self._validation_loss)
        points = dial.points(SCALES)
        return turned_within(dial, points, limit), *points

    def _is_over(self) -> bool:
        """Tell whether patience has run out."""
        patience = self.training.patience
        return patience is not None and self.best.validations_since >= patience

    def _train(self, steps: int, *, evaluated: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = self.trainer.TrainingArgs(
                batch_size=self.training.batch,
                iters=steps,
                steps_per_report=self.training.report_every,
                steps_per_save=steps + 1,
                max_seq_length=self.training.window,
                grad_checkpoint=self.training.grad_checkpoint,
                grad_accumulation_steps=self.training.accumulate,
                adapter_file=str(Path(folder, "unused.safetensors")),
            )
            with contextlib.closing(self._steps(steps)) as numbers:
                self.trainer.train(
                    self.model,
                    self.optimizer,
                    self.rows.train,
                    args=arguments,
                    iterate_batches=partial(self._batches, numbers, evaluated=evaluated),
                    training_callback=self,
                )

    def _steps(self, count: int) -> Generator[int, None, None]:
        """Yield the numbers of the steps to come, and show how far they are."""
        yield from self.track(Noted(range(self.start, self.start + count), self._note), "training")

    def _note(self) -> str:
        if self.train_loss is None:
            return ""
        return f"loss {self.train_loss:.4f}, {self.tokens_per_second:.0f} tokens/s"

    def _batches(
        self, steps: Iterator[int], *args: Any, evaluated: bool, **kwargs: Any
    ) -> Iterator[Any]:
        """Yield the training's batches, with all that has to happen between two steps."""
        for step, batch in zip(steps, self._order(*args, **kwargs), strict=False):
            if step % self.training.interval == 0 and not (evaluated and step == self.start):
                self._evaluate(step)
            if self._is_over():
                return
            yield batch

    def _order(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return between(self.order(*args, **kwargs))

    def _evaluate(self, step: int, *, last: bool = False) -> None:
        """Validate, let ranks change unless nothing would follow, and save."""
        loss = self._validation_loss()
        _check_finite("validation", loss, step)
        append_loss(self.out / LOSSES, step, "valid", loss)
        if self._fits():
            self.best.offer(Validated(step, loss), self.model, self.manager)
        if not last:
            self.callback.on_val_loss_report({"iteration": step, "val_loss": loss})
        sizes = _synced_sizes(self.out)
        self.generations.save(step, self.model, self.optimizer, self.manager, extra=sizes)
        self.say(self._line(step, loss))

    def _validation_loss(self) -> float:
        loss: float = self.trainer.evaluate(
            self.model,
            self.rows.valid,
            min(self.training.batch, len(self.rows.valid)),
            self.training.evaluate_batches,
            self.training.window,
            iterate_batches=self._order,
        )
        self.model.train()
        return loss

    def _fits(self) -> bool:
        """Tell whether the adapters would obey the ceiling."""
        ceiling = self.training.max_bytes
        return ceiling is None or self.count(self.manager.ranks()) <= ceiling

    def on_train_loss_report(self, info: Mapping[str, Any]) -> None:
        """Put the training loss on record; a hook of mlx-lm."""
        step = self.start + int(info["iteration"])
        self.train_loss = float(info["train_loss"])
        self.tokens_per_second = float(info["tokens_per_second"])
        _check_finite("training", self.train_loss, step)
        append_loss(self.out / LOSSES, step, "train", self.train_loss)

    def on_val_loss_report(self, info: Mapping[str, Any]) -> None:
        """Do nothing: validation is done here, between two steps. The other hook of mlx-lm."""

    def _line(self, step: int, loss: float) -> str:
        ranks = self.manager.ranks().values()
        train = "      -" if self.train_loss is None else f"{self.train_loss:7.4f}"
        awake, asleep = format_bytes(self.manager.bytes_awake), self.manager.bytes_asleep
        return (
            f"step {step:>{len(str(self.training.steps))}}/{self.training.steps}"
            f"  train {train}  valid {loss:7.4f}  ranks {min(ranks)} to {max(ranks)}"
            f"  awake {awake}  asleep {format_bytes(asleep)}"
        )


def _check_source(checkpoint: Checkpoint) -> None:
    if "model_file" in checkpoint.config:
        reason = "it needs a model file, and no stock adapter fits over one"
        raise FormatError.about(checkpoint.folder, reason, "train what it was made from")
    if checkpoint.holds_codes and checkpoint.quantizer.is_made_plain:
        reason = f"mlx-lm by itself reads codes of {checkpoint.quantizer.method!r} for few models"
        remedy = checkpoint.quantizer.remedy(checkpoint.folder)
        outcome = "they are trained as what they stand for; where mlx-lm cannot load them, "
        warn_about(checkpoint.folder, reason, outcome + remedy)


class _OtherText(NamedTuple):
    """Text that the base knows, and how it is told from another."""

    tokens: mx.array | None
    identity: dict[str, Any]


def _other_text(
    reader: TokenReader, training: TrainingOptions, text: str | os.PathLike[str] | None
) -> _OtherText:
    """Return what forgetting is measured on, where there is a limit on it."""
    if training.forget is None:
        if text is not None:
            raise ValueError(f"`base_text` must be None where there is no `forget`, got {text}.")
        return _OtherText(None, {})
    windows = Calibration(
        None if text is None else Path(text), min(LENGTH, training.window), WINDOWS
    )
    return _OtherText(windows.cut(reader), {"base text": windows.record()["sha256"]})


def _ranks(layers: Mapping[str, RankLayer]) -> dict[str, int]:
    return {path: layer.rank for path, layer in layers.items()}


def _adapter_count(layers: Mapping[str, RankLayer], training: TrainingOptions) -> ByteCount:
    """Return how the bytes of the run are counted: as its adapters take them."""
    most = sum(sum(layer.shape) * max(layer.shape) for layer in layers.values())
    return count_run_bytes(layers, training.max_bytes or most * mx.float32.size)


def _candidates(model: nn.Module) -> dict[str, int]:
    """Return path and bytes of a component of every adaptable layer, an untied head too."""
    inside = {p.path: p.shape for p in projections(model) if p.experts is None}
    modules: list[tuple[str, nn.Module]] = model.named_modules()  # type: ignore[no-untyped-call]
    head = {
        path: dense_weight(module).shape
        for path, module in modules
        if _is_head(path) and isinstance(module, nn.Linear | nn.QuantizedLinear)
    }
    factor = mx.float32.size
    return {path: factor * (sum(shape) + 1) for path, shape in (inside | head).items()}


def _is_head(path: str) -> bool:
    return path.rpartition(".")[2] == "lm_head"


def _check_ceiling(
    layers: Mapping[str, RankLayer], count: ByteCount, training: TrainingOptions
) -> None:
    """Refuse a ceiling below one component per layer, and a start on the wrong side of it."""
    ceiling = training.max_bytes
    if ceiling is None:
        return
    each, awake = count(dict.fromkeys(layers, 1)), count(_ranks(layers))
    if ceiling < each:
        raise ValueError(
            f"`max_bytes` must be at least {each} bytes, one component for each of the "
            f"{len(layers)} layers, got {ceiling} bytes; raise it, or adapt fewer layers."
        )
    full = all(layer.rank == layer.max_rank for layer in layers.values())
    if training.by_budget and awake <= ceiling and not full:
        raise ValueError(
            f"`max_bytes` must be below the {awake} bytes that a run which follows the budget "
            f"begins with, got {ceiling} bytes; give a higher `rank`, or follow the loss."
        )
    if awake > ceiling and not training.by_budget:
        raise ValueError(
            f"`rank` must be lower to begin below {ceiling} bytes, got {training.rank or RANK}, "
            f"which takes {awake}."
        )


def _check_size(nbytes: int, training: TrainingOptions) -> None:
    """Refuse to write what is larger than was asked for."""
    if training.max_bytes is not None and nbytes > training.max_bytes:
        raise DivergedError(
            f"the adapters would take {nbytes} bytes, above the {training.max_bytes} bytes of "
            "`max_bytes`: no validation since the cut was due found a finite gradient to price "
            "components by; begin again with a lower learning rate or other data"
        )


def _identity(
    checkpoint: Checkpoint,
    rows: TrainingData,
    training: TrainingOptions,
    patterns: Mapping[str, Sequence[str]],
    reader: TokenReader,
    start: Adapter | None,
) -> dict[str, Any]:
    """Return all that the course of the run depends on. Reads every byte of the base."""
    files = [[path.name, sha256_file(path)] for path in checkpoint.weight_files]
    base = hashlib.sha256(json.dumps([checkpoint.config, files], sort_keys=True).encode())
    options = {f"option {name}": value for name, value in training.record().items()}
    packages = ("mlx", "mlx-lm", "plastic-core", "plastic-runtime", "plastic-export")
    return {
        "base": base.hexdigest(),
        **{f"file {name}": digest for name, digest in reader.digests().items()},
        **{f"{kind} data": digest for kind, digest in rows.digests.items()},
        **{f"option {name}": list(words) for name, words in patterns.items()},
        **({} if start is None else {"start": adapter_digest(start)}),
        "device": str(mx.default_device()),
        **options,
        **{f"version of {name}": version(name) for name in packages},
    }


def _check_finite(kind: str, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the {kind} loss is {loss} at step {step}: no rank was changed and nothing saved "
            "since the validation before; begin again with a lower learning rate"
        )


def _last_validated(losses: Path) -> Validated:
    """Return the last step that was validated."""
    found = [(r.step, r.loss) for r in read_losses(losses) if r.kind == "valid"]
    return max(Validated(step, loss) for step, loss in found if loss is not None)


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence mlx-lm's own progress, which counts from the last resumption."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
