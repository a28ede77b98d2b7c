"""Checkpoints on a text: their perplexity, their distance from a reference, the differences."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, json_digest
from plastic_runtime import Track, untracked
from plastic_runtime.distributed import Team, check_alike, working_together

from plastic_export.checkpoint.finite import blaming_weights
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.estimate.limits import Say
from plastic_export.estimate.model_shape import ModelShape
from plastic_export.evaluation.common_texts import CommonTexts
from plastic_export.evaluation.convention import Like
from plastic_export.evaluation.estimates import Evaluation, ModelSize, Vocabulary, estimate
from plastic_export.evaluation.reading import Reading
from plastic_export.evaluation.saved_reference import SavedReference
from plastic_export.folder.adapter_files import FILE, adapter_of
from plastic_export.folder.manifest import source_record, together_facts


def evaluate(
    source: str | Path,
    texts: Sequence[str | Path],
    *,
    reference: str | Path | None = None,
    save_reference: str | Path | None = None,
    window: int | None = None,
    windows: int | None = None,
    like: Like | None = None,
    both_directions: bool = False,
    tokenizer: str | Path | None = None,
    memory: int | None = None,
    say: Say | None = None,
    track: Track = untracked,
    team: Team | None = None,
) -> list[Evaluation]:
    """Measure one checkpoint; arguments, cost and errors are those of `compare`.

    Returns:
        One result per text.

    Examples:
        >>> (result,) = evaluate("PACKED", ["text.txt"], reference="SRC", window=24, windows=8)
        >>> print(result.tokens, result.kl > 0, result.top1 <= 1)
        184 True True
    """
    return compare(
        [source],
        texts,
        reference=reference,
        save_reference=save_reference,
        window=window,
        windows=windows,
        like=like,
        both_directions=both_directions,
        tokenizer=tokenizer,
        memory=memory,
        say=say,
        track=track,
        team=team,
    )


def compare(
    sources: Sequence[str | Path],
    texts: Sequence[str | Path],
    *,
    reference: str | Path | None = None,
    save_reference: str | Path | None = None,
    window: int | None = None,
    windows: int | None = None,
    like: Like | None = None,
    both_directions: bool = False,
    tokenizer: str | Path | None = None,
    memory: int | None = None,
    say: Say | None = None,
    track: Track = untracked,
    team: Team | None = None,
) -> list[Evaluation]:
    """Measure perplexity and, against a reference, divergence and agreement on the same windows.

    A difference to the reference is far better determined by ``kl`` and ``top1``, which compare
    both models token by token, than by two perplexities: the windows' own variation cancels. So
    it does between two checkpoints whose divergences are subtracted window by window: their
    ``difference`` can be certain where their intervals overlap.

    The tokens of the tokenizer are compared: rows with which a vocabulary is padded take no part
    in any softmax, so that models padded differently are compared as well.

    Cost: one block of one checkpoint in memory at a time, with what is outside its blocks; the
    reference runs once, and its log-probabilities wait in a file, two bytes per token of the text
    and of the vocabulary (`encode_log_probabilities`). Where nobody saves that, it is a temporary
    one.

    Args:
        sources: Folders or Hub ids, in any format that this package writes or mlx-lm reads, all
            of one tokenizer. Each is compared with the first.
        texts: UTF-8 files, or files of token ids as in `Calibration`; each is measured by itself.
        reference: Checkpoint to compare with, of the same tokenizer; or the file of an earlier
            ``save_reference``, for the same texts, windows, tokenizer and kind of device.
        save_reference: File to write the log-probabilities of ``reference`` to.
        window: Tokens per window, each run from an empty context; by default 256.
        windows: How many windows at most, spread evenly over each text; by default 24.
        like: Tool whose rules and errors to follow: ``"llama.cpp"`` (windows of 512, all of them,
            the second half of each scored) or ``"mlx-lm"`` (the first 256 windows of 512). Errors
            are then over tokens.
        both_directions: Whether to measure KL(source || reference) too.
        tokenizer: Folder or Hub id of the tokenizer of all; by default each has its own.
        memory: Bytes of memory that it may take; by default what the machine has. Fewer windows
            run at a time where that is short.
        say: Is told in a line what the work will take, unless that is next to nothing.
        track: Wraps the loop over the blocks and batches of each checkpoint.
        team: The processes that share the windows, each with the same arguments, in a folder that
            all of them see; by default this one alone. What is returned is the same for any number
            of them on machines of one kind, but for `RunSpeed`, and in all of them.

    Returns:
        One result per text and checkpoint: all checkpoints on the first text, in the order
        given, then all on the next.

    Raises:
        ValueError: If there is no source, a text is shorter than one window, two tokenizers
            cut it differently, there is no checkpoint whose log-probabilities were to be saved, or
            one window does not fit into ``memory``.
        FormatError: If a checkpoint or a text cannot be read, predictions are not finite, a file
            of log-probabilities is of something else, or ``save_reference`` exists.
        BusyError: If several processes of another run measure the same in this folder.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If a file is missing or cannot be read, or the disk is too small.

    Examples:
        >>> first, second = compare(
        ...     ["PACKED", "FACTORED"], ["text.txt"], reference="SRC", window=24, windows=8
        ... )
        >>> abs(second.difference.mean - (second.kl - first.kl)) < 1e-12
        True
        >>> second.difference.verdict
        'worse'
    """
    team = team or Team()
    asked = {
        "sources": [*map(str, sources)],
        "texts": [*map(str, texts)],
        "reference": str(reference),
        "window": window,
        "windows": windows,
        "like": like,
        "both_directions": both_directions,
        "tokenizer": str(tokenizer),
    }
    place = Path(f"evaluation-{team.told(_short_digest(asked))}")
    with working_together(team, place, together_facts(asked)), ExitStack() as stack:
        if not sources:
            raise ValueError("`sources` must name at least one checkpoint, got none")
        opened = [_opened(source) for source in sources]
        named = {repr(str(source)): each for source, each in zip(sources, opened, strict=True)}
        is_saved = reference is not None and Path(reference).is_file()
        _check_saving(reference, save_reference, is_saved=is_saved, team=team)
        judge = None
        if reference is not None and not is_saved:
            judge = named[f"`reference` {str(reference)!r}"] = _opened(reference)
        common = CommonTexts.of(named, texts, tokenizer, like, window, windows)
        if team.size > 1:
            held_alike = {name: source_record(each) for name, each in named.items()}
            check_alike(team, place, {"settings": common.asked, "sources": held_alike})
        stack.enter_context(blaming_weights(*named.values()))
        held = None
        if is_saved:
            held = stack.enter_context(SavedReference(Path(str(reference))))
            held.check(common.asked, windows=common.windows)
            common = common.among(held.vocabulary)
        reading = Reading(
            common.texts,
            common.vocabulary,
            common.rows,
            {each.folder: ModelShape.of(each) for each in named.values()},
            memory,
            track,
            common.context,
            both_directions,
            team,
        )
        reading.announce(say, runs=len(named), kept=judge is not None, file=save_reference)
        if judge is not None:
            run = _run(reading, judge, reference, common.asked, save_reference)
            held = stack.enter_context(run)
        measured = [
            reading.measure(source, each.folder, held, own=not is_saved)
            for source, each in zip(sources, opened, strict=True)
        ]
        entries = [shape.entries for shape in reading.shapes.values()]
        weights = max([*entries, held.weights if held else 0])
        return [
            estimate(
                str(source),
                each.texts[i],
                settings,
                first=measured[0].texts[i] if j else None,
                vocabulary=Vocabulary(common.vocabulary, common.rows - common.vocabulary),
                overflows=common.overflows[repr(str(source))],
                lost=each.lost[i],
                size=_size(opened[j], weights),
                runtime=each.runtime,
            )
            for i, settings in enumerate(common.settings)
            for j, (source, each) in enumerate(zip(sources, measured, strict=True))
        ]


def _short_digest(asked: Mapping[str, Any]) -> str:
    """Return what tells evaluations apart that run in one folder."""
    return json_digest(asked)[:8]


def _size(checkpoint: Checkpoint, weights: int) -> ModelSize:
    """Return how large a checkpoint is, and per weight if there are any."""
    adapter = adapter_of(checkpoint.folder)
    files = [*checkpoint.weight_files, *([adapter / FILE] if adapter else [])]
    nbytes = sum(file.stat().st_size for file in files)
    return ModelSize(nbytes, 8 * nbytes / weights if weights else None)


def _opened(source: str | Path) -> Checkpoint:
    """Return a checkpoint whose headers were checked; its weights are not read from here."""
    with open_checkpoint(source) as checkpoint:
        return checkpoint


def _check_saving(
    reference: str | Path | None, file: str | Path | None, *, is_saved: bool, team: Team
) -> None:
    """Refuse before the work what cannot be saved."""
    if file is None:
        return
    if team.size > 1:
        raise ValueError(
            "`save_reference` is for one process; save it without mlx.launch, then name the file "
            "as the reference"
        )
    if reference is None or is_saved:
        raise ValueError("`save_reference` needs a `reference` that is a checkpoint, to be run")
    if Path(file).exists():
        raise FormatError.about(file, "it exists", "choose another file, or remove it")


@contextmanager
def _run(
    reading: Reading,
    checkpoint: Checkpoint,
    name: str | Path | None,
    settings: Mapping[str, Any],
    file: str | Path | None,
) -> Iterator[SavedReference]:
    """Run the reference once; its log-probabilities are in the file, or in one for the block."""
    with tempfile.TemporaryDirectory() as folder:
        if file is None:
            place = Path(folder) / "reference"
        else:
            known = {
                **source_record(checkpoint),
                "weights": reading.shapes[checkpoint.folder].entries,
            }
            place, settings = Path(file), {**settings, "reference": known}
        reading.write(place, str(name), checkpoint.folder, settings)
        with SavedReference(place) as saved:
            yield saved
