"""Heal a compressed checkpoint: a short distillation against its original."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from plastic_core.files import FormatError, read_header
from plastic_runtime import Track, untracked
from plastic_runtime.dialling import MANIFEST, SLEEP
from plastic_runtime.distributed import STAYS_FOR_AS_MANY, Team, check_alike, working_together

from plastic_export.calibration.overflow import overflows
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.warning import told_before
from plastic_export.compression.writer import check_room
from plastic_export.estimate.learning import foresee_learning
from plastic_export.estimate.limits import Say
from plastic_export.estimate.model_shape import ModelShape
from plastic_export.evaluation.output_check import FailedCheckError
from plastic_export.exact.exactness import EXACT
from plastic_export.folder.adapter_files import CONFIG, FILE, adapter_of
from plastic_export.folder.manifest import together_facts
from plastic_export.folder.output import OutputFolder
from plastic_export.healing.distillation import ROOM, Distillation, Split, Teacher, parts
from plastic_export.healing.joined import JoinedTask, check_shares, share_of_split
from plastic_export.healing.loop import MEASUREMENTS, HealingOptions, HealState, heal_values
from plastic_export.healing.state import StateFile, heal_identity
from plastic_export.healing.trainable import TrainedTensor, trainable
from plastic_export.healing.writer import check_reference, write_healed
from plastic_export.hub.output_card import write_output_card
from plastic_export.model.load import load_for_inference, load_model
from plastic_export.process.interruption import saying_when_interrupted
from plastic_export.source.trace import trace_loading


@dataclass(frozen=True)
class Healed:
    """The result of ``heal``.

    Attributes:
        out: The folder that was written.
        steps: Steps of the optimizer.
        windows: Windows learned from, and windows held out.
        tensors: How many tensors were trained.
        parameters: How many numbers they hold.
        kl_before: KL(reference || model) on the held-out windows, nats per token.
        kl_after: The same for what was written; never more than ``kl_before``.
        step: The step whose values were written; 0 where none was better than the start.
        measured: ``(step, kl)`` of every measurement.
        vocabulary: How many tokens took part, those that the tokenizer and both models have.
        padding: How many rows of the wider vocabulary took no part.
        kl_loaded: ``kl_after`` once more, of the files that were written, as mlx-lm loads them;
            None without ``check``.

    Examples:
        >>> few, options = Calibration("text.txt", window=24, windows=8), HealingOptions(steps=2)
        >>> result = heal("PACKED", "SRC", "HEALED", calibration=few, options=options)
        >>> result.windows
        (7, 1)
    """

    out: Path
    steps: int
    windows: tuple[int, int]
    tensors: int
    parameters: int
    kl_before: float
    kl_after: float
    step: int
    measured: tuple[tuple[int, float], ...]
    vocabulary: int = 0
    padding: int = 0
    kl_loaded: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the entry of the manifest."""
        return {
            "kl_before": self.kl_before,
            "kl_after": self.kl_after,
            "step": self.step,
            "held_out_windows": self.windows[1],
        }


def heal(
    folder: str | Path,
    reference: str | Path,
    out: str | Path | None = None,
    *,
    calibration: Calibration,
    options: HealingOptions | None = None,
    force: bool = False,
    check: bool = True,
    memory: int | None = None,
    say: Say | None = None,
    track: Track = untracked,
    team: Team | None = None,
) -> Healed:
    """Train what is stored in floating point of a compressed checkpoint, and write the result.

    These are the scales and biases of every affine-quantised layer, backbone or factor, the
    low-rank factors that are not packed, also those of its adapter, and the normalisations. Codes
    never change, so no tensor changes its size, and every other tensor keeps its bits. What is
    lowered is KL(reference || model) over the full vocabulary on windows of a text; every eighth
    window is held out, and the values written are those that did best on these, the ones of the
    start included.

    A run that was cut goes on where it was when it is started again with the same arguments: its
    state is in ``<out>.heal.safetensors`` beside the output until that is complete. On a CPU the
    end is bit for bit that of a run that was not cut.

    Args:
        folder: Output of ``compress`` in any format but the dense one, or a checkpoint that was
            quantised by mlx-lm in its affine mode.
        reference: The checkpoint that it was made from, not compressed.
        out: Folder to write; must not exist, or be empty. By default ``folder`` is replaced, if
            this package wrote it; files in it that it did not write stay.
        calibration: The text, and how many windows of it are used, at least eight.
        options: How long and how fast.
        force: Replace ``out`` where it is an earlier output, but for files that are not its own.
        check: Load what was written as mlx-lm does and measure it on the held-out windows before
            it gets its name.
        memory: Bytes of memory that it may take; by default what the machine has.
        say: Is told in a line what the work will take, unless that is next to nothing.
        track: Wraps the long loops.
        team: The processes that heal together, each with the same arguments, in a folder that all
            see; by default this one alone. The windows of every step are dealt out; the first
            process alone decides and writes. It goes on with as many alone.

    Raises:
        DisagreementError: If processes are not alike.
        FailedCheckError: If what was written is further from the reference than ``folder`` was;
            nothing is replaced.
        FormatError: If a checkpoint or a text cannot be read, there is nothing to train, the
            reference is no source of ``folder``, a state is there of another healing, or a file
            that this package did not write has the name of one to be written.
        ValueError: If the text is too short, the tokenizers differ, or the work does not fit into
            memory.
        OSError: If writing fails. The state is left behind, and nothing else.

    Cost:
        Both models in turn, and of the second the activations of one batch; if it is computed on
        a CPU, everything in float32. Per step one forward and one backward pass, and a forward
        pass of the reference where its log-probabilities do not fit into a file of 2 GiB.

    References:
        Distillation of scales and biases: ``mlx_lm.dwq``. The defaults are a heuristic, see
        `HealingOptions`.

    Examples:
        >>> few, options = Calibration("text.txt", window=24, windows=8), HealingOptions(steps=2)
        >>> result = heal("PACKED", "SRC", "HEALED", calibration=few, options=options)
        >>> result.kl_after <= result.kl_before
        True
    """
    options, team = options or HealingOptions(), team or Team()
    asked = {
        "folder": str(folder),
        "reference": str(reference),
        "out": None if out is None else str(out),
        "calibration": {name: str(value) for name, value in asdict(calibration).items()},
        "options": asdict(options),
        "force": force,
        "check": check,
    }
    written = Path(folder if out is None else out)
    with (
        working_together(team, written, together_facts(asked), stays=STAYS_FOR_AS_MANY),
        open_checkpoint(folder) as checkpoint,
        open_checkpoint(reference) as original,
    ):
        place = _place(checkpoint, original, out, force)
        check_reference(checkpoint, original)
        text = _common_text(checkpoint, original, calibration)
        split = Split.of(len(text.tokens))
        check_shares(options.batch, split, team.size)
        _foresee(original, text, split, options, memory, say)
        identity = heal_identity(checkpoint, original, calibration, options)
        check_alike(team, place.path, {"healing": identity})
        state = StateFile(
            place.path.with_name(f"{place.path.name}.heal.safetensors"),
            identity | ({"processes": team.size} if team.size > 1 else {}),
        )
        if team.leads:
            state.load()  # what it refuses is refused before the work
        with saying_when_interrupted(state.waiting):
            trained = _train(checkpoint, original, text, split, options, state, track, team)
        if trained is None:
            return _told(team, None)
        end, names = trained
        result = _result(place.path, end, split, options, text)
        best = {names[name].tensor: value for name, value in end.best.items()}
        record = calibration.record() | asdict(options) | result.record()
        with place as target:
            write_healed(checkpoint, original, best, record, target, track=track)
            checkpoint.check_unchanged()
            write_output_card(target, place.path, original, None)
            if check:
                kl = _loaded_divergence(target, result, original, text, split)
                result = replace(result, kl_loaded=kl)
        state.remove()
        return _told(team, result)


def _told(team: Team, result: Healed | None) -> Healed:
    """Return in all processes what the first one has done."""
    if team.size == 1 and result is not None:
        return result
    told = team.told(None if result is None else asdict(result) | {"out": str(result.out)})
    measured = tuple((step, kl) for step, kl in told["measured"])
    lists = {"windows": tuple(told["windows"]), "measured": measured}
    return result or Healed(**told | lists | {"out": Path(told["out"])})


def _loaded_divergence(
    written: Path, result: Healed, original: Checkpoint, text: _Text, split: Split
) -> float:
    """Return the divergence of the files that were written on the held-out windows.

    Raises:
        FailedCheckError: If they cannot be loaded, or are further from the reference than at the
            start, by more than the rounding of its log-probabilities accounts for.
    """
    judge, size = load_for_inference(original.folder), text.vocabulary
    teacher = Teacher(judge, text.tokens, vocabulary=size, uses=0, folder=written)
    try:
        with told_before():
            loaded = load_model(written)
        kl = Distillation(loaded, [], teacher, text.tokens, split).divergence({})
    except FormatError as error:
        raise FailedCheckError(f"{result.out}: what was healed cannot be run: {error}") from error
    if not kl <= 1.01 * result.kl_before + 1e-4:
        raise FailedCheckError(
            f"{result.out}: loaded again, what was healed is {kl:.4g} nats per token from its "
            f"reference, and was {result.kl_before:.4g} before: nothing was replaced"
        )
    return kl


def _place(
    checkpoint: Checkpoint, original: Checkpoint, out: str | Path | None, force: bool
) -> OutputFolder:
    """Return where the result goes; refuse it now if it would be refused in the end."""
    if out is None and not (checkpoint.folder / MANIFEST).is_file():
        reason = f"it holds no {MANIFEST}, so it is not this package's to replace"
        raise FormatError.about(checkpoint.folder, reason, "name a folder to write with --out")
    read = [original.folder, *([] if out is None else [checkpoint.folder])]
    for source in read:
        target = checkpoint.folder if out is None else out
        place = OutputFolder(target, force=force or out is None, source=source)
    adapter = adapter_of(checkpoint.folder)
    beside = [checkpoint.folder / name for name in (SLEEP, EXACT)]
    files = [*checkpoint.weight_files, *beside, *([] if adapter is None else [adapter / FILE])]
    check_room(checkpoint, place, sum(file.stat().st_size for file in files if file.exists()))
    written = [] if adapter is None else [f"{adapter.name}/{name}" for name in (FILE, CONFIG)]
    place.check_names(written, checkpoint.side_files())
    place.path.parent.mkdir(parents=True, exist_ok=True)
    return place


class _Text(NamedTuple):
    """The windows, how many tokens the models are compared on, and the padding beside these."""

    tokens: mx.array
    vocabulary: int
    padding: int


def _common_text(checkpoint: Checkpoint, original: Checkpoint, calibration: Calibration) -> _Text:
    """Return the windows, which both tokenizers must make the same."""
    readers = [calibration.reader(each) for each in (checkpoint, original)]
    ours, theirs = (calibration.cut(reader) for reader in readers)
    if not np.array_equal(np.asarray(ours), np.asarray(theirs)):
        raise ValueError(
            f"{original.name!r} splits the text into other tokens than {checkpoint.name!r}; "
            "name the checkpoint that it was made from"
        )
    for each in (checkpoint, original):
        overflows(each.folder, ours)
    vocabulary = min(reader.size for reader in readers)
    return _Text(ours, vocabulary, max(reader.rows for reader in readers) - vocabulary)


def _foresee(
    original: Checkpoint,
    text: _Text,
    split: Split,
    options: HealingOptions,
    memory: int | None,
    say: Say | None,
) -> None:
    """Tell what the healing will take, or refuse it."""
    windows, length = text.tokens.shape
    judged = windows + (MEASUREMENTS + 1) * len(split.held_out)
    foresee_learning(
        ModelShape.of(original),
        learnt=options.steps * options.batch * length,
        judged=judged * length,
        trained=False,
        rows=len(parts(np.arange(options.batch), text.tokens, text.vocabulary)[0]),
        length=length,
        disk=min(ROOM, 2 * text.tokens.size * text.vocabulary),
        memory=memory,
        say=say,
    )


def _train(
    checkpoint: Checkpoint,
    original: Checkpoint,
    text: _Text,
    split: Split,
    options: HealingOptions,
    state: StateFile,
    track: Track,
    team: Team,
) -> tuple[HealState, dict[str, TrainedTensor]] | None:
    """Return the end of the training, and every parameter that was trained.

    In the first process; elsewhere nothing, when it is done.
    """
    model = load_model(checkpoint.folder)
    names, values = _values(model, checkpoint)
    teacher = Teacher(
        load_for_inference(original.folder),
        text.tokens,
        vocabulary=text.vocabulary,
        uses=options.steps * options.batch,
        folder=state.path.parent,
        track=track,
    )
    with teacher:
        own = share_of_split(split, team)
        task = Distillation(model, list(names), teacher, text.tokens, own)
        joined = JoinedTask(team, task, len(own.held_out))
        if not team.leads:
            joined.answer()
            return None
        end = heal_values(
            task if team.size == 1 else joined,
            values,
            len(split.training),
            options,
            fractions={name: trained.fraction for name, trained in names.items()},
            store=state,
            track=track,
        )
        joined.done()
        return end, names


def _values(
    model: nn.Module, checkpoint: Checkpoint
) -> tuple[dict[str, TrainedTensor], dict[str, mx.array]]:
    """Return every parameter that is trained, and its value as it is stored."""
    parameters = dict(tree_flatten(model.parameters()))  # type: ignore[no-untyped-call]
    stored = _stored_as_loaded(checkpoint)
    names = {
        name: trained._replace(tensor=stored[trained.tensor])
        for name, trained in trainable(model).items()
        if trained.tensor in stored
    }
    if not names:
        reason = "nothing in it can be healed: no affine-quantised layer, no low-rank factor"
        raise FormatError.about(checkpoint.folder, reason, "compress it first")
    values = {name: parameters[name] for name in names}
    mx.eval(values)
    return names, values


def _stored_as_loaded(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the tensor of each parameter that mlx-lm loads as it is stored.

    What mlx-lm computes while it loads would be computed once more from what healing writes.
    """
    origins, tensors = trace_loading(checkpoint.folder).origins, checkpoint.tensors
    stored = {name: o.tensors[0] for name, o in origins.items() if o.is_copy}
    stored = {name: tensor for name, tensor in stored.items() if tensor in tensors}
    if adapter := adapter_of(checkpoint.folder):
        stored |= {name: name for name in read_header(adapter / FILE).tensors}
    return stored


def _result(
    out: Path, end: HealState, split: Split, options: HealingOptions, text: _Text
) -> Healed:
    before = end.measured[0][1]
    step, after = min(end.measured, key=lambda m: (not isfinite(m[1]), m[1], m[0]))
    return Healed(
        out=out,
        steps=options.steps,
        windows=(len(split.training), len(split.held_out)),
        tensors=len(end.best),
        parameters=sum(v.size for v in end.best.values()),
        kl_before=before,
        kl_after=after,
        step=step,
        measured=tuple(end.measured),
        vocabulary=text.vocabulary,
        padding=text.padding,
    )
