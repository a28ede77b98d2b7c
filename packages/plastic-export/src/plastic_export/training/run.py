"""Train a checkpoint with ranks that follow the validation loss, inside mlx-lm's own trainer.

mlx-lm's ``train`` asks for a batch when all steps before it are done, so what happens between
two steps happens here where its batches come from: validation, changes of rank, saving.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from plastic_core import RankLayer
from plastic_core.files import FormatError
from plastic_runtime import ByteCount, Track, untracked
from plastic_runtime.distributed import (
    STAYS_FOR_AS_MANY,
    Team,
    await_file,
    check_alike,
    working_together,
)

from plastic_export.adapters.base_name import BaseName, name_of_base
from plastic_export.adapters.half_precision import STORED
from plastic_export.adapters.reading import read_adapter
from plastic_export.calibration.overflow import overflows
from plastic_export.calibration.tokens import TokenReader
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.warning import warn_about
from plastic_export.estimate.learning import foresee_learning
from plastic_export.estimate.limits import Say
from plastic_export.estimate.model_shape import ModelShape
from plastic_export.folder.manifest import together_facts
from plastic_export.folder.run_files import LOSSES
from plastic_export.hub.run_card import write_run_card
from plastic_export.training.adapters import count_run_bytes, least_run_bytes
from plastic_export.training.best_state import Validated
from plastic_export.training.course import Course, DivergedError, Listener, ranks_of
from plastic_export.training.data.training_data import Places, TrainingData, read_training_data
from plastic_export.training.forgetting.base_text import BaseText, read_base_text
from plastic_export.training.forgetting.dial import DialPoint
from plastic_export.training.history import History, read_history
from plastic_export.training.identity import identity_of_run
from plastic_export.training.joined import check_batch, check_rows
from plastic_export.training.plastic_model import load_plastic_model
from plastic_export.training.results import write_results
from plastic_export.training.run_folder import RunFile, claimed
from plastic_export.training.settings import RANK, TrainingOptions

DEFAULT = TrainingOptions()


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        out: Its folder.
        adapter: Adapter of one rank, for mlx-lm's ``--adapter-path``.
        peft: The same in the form of PEFT.
        history: The history of the run.
        written: The state that both hold, and the validation loss of what they hold, in float16
            and at the factor on ``S``.
        dial: Both losses under factors on every ``S``, where a limit on what is forgotten was set;
            the first one is what was written.
        resumed: Step that the run went on from; None if it was not cut.

    Examples:
        >>> few = TrainingOptions(
        ...     steps=4, batch=2, window=32, rank=2, state="last",
        ...     evaluate_every=2, evaluate_batches=2,
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
    data: Places,
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
    listener: Listener | None = None,
    team: Team | None = None,
) -> TrainedRun:
    """Fine-tune a checkpoint with a plastic part beside its frozen projections.

    ``out`` gets the logs (`report`), the newest states and the best one, and at the end two
    adapters of the best one, which `dial_run` writes at other sizes. Called again
    with the same arguments after it was cut anywhere, it goes on, and what it writes is bit for
    bit what an undisturbed run writes (CPU, same versions and hardware).

    Args:
        src: Folder or Hub id; dense or quantised. Its own weights are never changed.
        data: Folder with ``train.jsonl`` and ``valid.jsonl`` in mlx-lm's formats, or other files
            and folders of rows, see `read_training_data`.
        out: Folder of the run: new, empty, or of the same run.
        training: How to train.
        include: Glob patterns of the matrices to adapt; by default all projections.
        exclude: Glob patterns of matrices to leave alone.
        tokenizer: Folder or Hub id of the tokenizer; by default that of ``src``.
        revision: Commit, tag or branch of a Hub id.
        base_text: Text that the base knows, to measure forgetting on (``training.forget``) and to
            remember (``training.remember``), each on windows of its own; by default the texts of
            many kinds that come along.
        start: An adapter to go on from, see `read_adapter`: the run begins at the sum of the base
            and of it.
        memory: Bytes of memory that it may take; by default what the machine has.
        say: Takes one line about what it will take and one per validation.
        track: Wraps the steps, which are `Noted`: the newest training loss and tokens per second.
        listener: Hears of every loss; one of mlx-lm's callbacks, for example.
        team: The processes that train together, each with the same arguments, in a folder that all
            see; by default this one alone. Each takes its share of the rows of every batch, so the
            run is that of one process up to rounding. It goes on with as many alone.

    Returns:
        Where things are and what happened.

    Raises:
        FormatError: If the checkpoint, the data or a saved state is damaged, or ``out`` is not
            ours, or of another run: names the difference.
        BusyError: If another process is training there.
        DisagreementError: If processes are not alike, at the start or later.
        ValueError: If there is no layer to adapt, the ceiling is too low, the work does not fit
            into memory, or a batch cannot be dealt out to the processes.
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
    out, team = Path(out), team or Team()
    check_batch(training.batch, team.size)
    asked = {
        "source": str(src),
        "revision": revision,
        "data": [str(place) for place in ([data] if isinstance(data, str | os.PathLike) else data)],
        "training": training.record(),
        "include": [*include],
        "exclude": [*exclude],
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "base_text": None if base_text is None else str(base_text),
        "start": None if start is None else str(start),
    }
    with (
        working_together(team, out, together_facts(asked), stays=STAYS_FOR_AS_MANY),
        open_checkpoint(src, revision=revision) as checkpoint,
    ):
        _check_source(checkpoint)
        reader = TokenReader(checkpoint, None if tokenizer is None else Path(tokenizer))
        rows = read_training_data(
            data,
            reader.tokenizer,
            batch=training.batch,
            window=training.window,
            mask_prompt=training.mask_prompt,
            validated=training.validated_rows,
            seed=training.seed,
        )
        check_rows(rows, team.size)
        for each in (rows.train, rows.valid):
            for i in range(len(each)):
                reader.check(each[i][0])
        overflows(checkpoint.folder, mx.array(rows.train[0][0][: training.window - 1])[None])
        patterns = {"include": include, "exclude": exclude}
        known = read_base_text(reader, training, base_text)
        _foresee(checkpoint, rows, known, training, memory, say, team.size)
        begun = None if start is None else read_adapter(start, base=checkpoint)
        with _quiet():
            model, layers, training, notes = load_plastic_model(
                checkpoint, rows, training, include=include, exclude=exclude, start=begun
            )
        count = _adapter_count(layers, training)
        _check_ceiling(layers, count, training)
        base = name_of_base(checkpoint)
        for note in (*rows.notes, *notes, *filter(None, [base.note])):
            say(note)
        run = RunFile(
            identity=identity_of_run(checkpoint, rows, training, patterns, reader, begun)
            | known.identity
            | ({"processes": team.size} if team.size > 1 else {}),
            ranks=ranks_of(layers),
            bytes_awake=count(ranks_of(layers)),
            max_bytes=training.max_bytes,
        )
        check_alike(team, out, {"run": run.identity, "ranks": run.ranks})
        with claimed(out, run) if team.leads else contextlib.nullcontext(), _quiet():
            course = Course(
                out, model, rows, known, training, count, run.identity, say, track, listener, team
            )
            resumed = course.go()
            if not team.leads:
                course.answer()
                return _told(team, out, None)
            done = _finished(course, checkpoint, layers, base, resumed)
            course.done()
            return _told(team, out, done)


def _finished(
    course: Course,
    checkpoint: Checkpoint,
    layers: Mapping[str, RankLayer],
    base: BaseName,
    resumed: int | None,
) -> TrainedRun:
    """Write what the run has come to."""
    out = course.out
    written = course.finish()
    dial = course.turn_down()
    _check_size(course.count(ranks_of(layers)), course.training)
    results = write_results(course, layers, base)
    written = Validated(written.step, results.loss)
    history = read_history(out)
    losses = [history.valid[0], (written.step, written.loss)]
    write_run_card(out, checkpoint, ranks_of(layers), losses)
    return TrainedRun(out, results.adapter, results.peft, history, written, dial, resumed)


def _told(team: Team, out: Path, done: TrainedRun | None) -> TrainedRun:
    """Return in all processes what the first one has done."""
    if team.size == 1 and done is not None:
        return done
    record = (
        None
        if done is None
        else [
            str(done.adapter.relative_to(out)),
            str(done.peft.relative_to(out)),
            [done.written.step, done.written.loss],
            [list(point) for point in done.dial],
            done.resumed,
        ]
    )
    adapter, peft, written, dial, resumed = team.told(record)
    await_file(out / LOSSES)
    return done or TrainedRun(
        out,
        out / adapter,
        out / peft,
        read_history(out),
        Validated(*written),
        tuple(DialPoint(*point) for point in dial),
        resumed,
    )


def _foresee(
    checkpoint: Checkpoint,
    rows: TrainingData,
    known: BaseText,
    training: TrainingOptions,
    memory: int | None,
    say: Say,
    processes: int,
) -> None:
    """Tell what the run will take, or refuse it."""
    shape = ModelShape.of(checkpoint)
    lengths = [len(rows.train[i][0]) for i in range(len(rows.train))]
    mean = sum(lengths) / len(lengths)
    validated = min(training.validated_rows or len(rows.valid), len(rows.valid))
    validations = training.steps // training.interval + 1
    windows, remembered = (0, 0) if known.remembered is None else known.remembered.shape
    foresee_learning(
        shape,
        learnt=training.steps * (training.batch * mean + remembered),
        judged=validations * validated * mean + windows * remembered,
        trained=True,
        rows=training.batch // processes,
        length=max(lengths),
        beside=remembered,
        disk=0,
        memory=memory,
        say=say,
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


def _adapter_count(layers: Mapping[str, RankLayer], training: TrainingOptions) -> ByteCount:
    """Return how the bytes of the run are counted: as its adapters take them."""
    shapes = _shapes(layers)
    most = sum(sum(shape) * max(shape) for shape in shapes.values())
    return count_run_bytes(shapes, training.max_bytes or most * STORED.size)


def _shapes(layers: Mapping[str, RankLayer]) -> dict[str, tuple[int, int]]:
    return {path: layer.shape for path, layer in layers.items()}


def _check_ceiling(
    layers: Mapping[str, RankLayer], count: ByteCount, training: TrainingOptions
) -> None:
    """Refuse a ceiling below one component per layer, and a start on the wrong side of it."""
    ceiling = training.max_bytes
    if ceiling is None:
        return
    least, awake = least_run_bytes(_shapes(layers)), count(ranks_of(layers))
    if ceiling < least:
        raise ValueError(
            f"`max_bytes` must be at least {least} bytes, one component for each of the "
            f"{len(layers)} layers, got {ceiling} bytes; raise it, or adapt fewer layers."
        )
    full = all(layer.rank == layer.max_rank for layer in layers.values())
    asked = training.rank is not None
    if training.by_budget and asked and awake <= ceiling and not full:
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence mlx-lm's own progress, which counts from the last resumption."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
