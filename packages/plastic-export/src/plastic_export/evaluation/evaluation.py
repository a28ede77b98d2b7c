"""Checkpoints on a text: their perplexity, their distance from a reference, the differences."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from plastic_core.files import FormatError
from plastic_core.linalg import on_cpu
from plastic_runtime import Track, untracked
from plastic_runtime.distributed import Team, check_alike, working_together

from plastic_export.calibration.overflow import overflows
from plastic_export.calibration.tokens import TokenReader
from plastic_export.checkpoint.finite import blaming_weights
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.estimate.limits import Say
from plastic_export.estimate.model_shape import ModelShape
from plastic_export.evaluation.convention import CONVENTIONS, OWN, Convention, Like
from plastic_export.evaluation.estimates import Evaluation, ModelSize, Vocabulary, estimate
from plastic_export.evaluation.measures import Windows
from plastic_export.evaluation.reading import Reading
from plastic_export.evaluation.saved_reference import SavedReference
from plastic_export.evaluation.settings import reference_settings, settings_of
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
    with working_together(team, place, together_facts(asked)):
        if not sources:
            raise ValueError("`sources` must name at least one checkpoint, got none")
        rule = CONVENTIONS[like] if like else OWN
        window = rule.window if window is None else window
        windows = rule.windows if windows is None else windows
        opened = [_opened(source) for source in sources]
        named = {repr(str(source)): each for source, each in zip(sources, opened, strict=True)}
        is_saved = reference is not None and Path(reference).is_file()
        _check_saving(reference, save_reference, is_saved=is_saved, team=team)
        judge = None
        if reference is not None and not is_saved:
            judge = named[f"`reference` {str(reference)!r}"] = _opened(reference)
        readers = {name: TokenReader(each, tokenizer) for name, each in named.items()}
        ids = _same_windows(readers, texts, rule, window, windows)
        exceeding = {name: _overflows(each.folder, ids) for name, each in named.items()}
        prefixes = next(iter(readers.values())).prefixes
        described = [
            settings_of(file, each.tokens, prefixes[str(file)], like)
            for file, each in zip(texts, ids, strict=True)
        ]
        settings = reference_settings(described, window, windows)
        if team.size > 1:
            held_alike = {name: source_record(each) for name, each in named.items()}
            check_alike(team, place, {"settings": settings, "sources": held_alike})
        rows = max(reader.rows for reader in readers.values())
        vocabulary = min(reader.size for reader in readers.values())
        with blaming_weights(*named.values()), ExitStack() as stack:
            held = None
            if is_saved:
                held = stack.enter_context(SavedReference(Path(str(reference))))
                held.check(settings, windows=sum(len(tokens) for _, tokens in ids))
                vocabulary = min(vocabulary, held.vocabulary)
            shapes = {each.folder: ModelShape.of(each) for each in named.values()}
            context = rule.context(window)
            reading = Reading(
                ids, vocabulary, rows, shapes, memory, track, context, both_directions, team
            )
            reading.announce(say, runs=len(named), kept=judge is not None, file=save_reference)
            if judge is not None:
                held = stack.enter_context(
                    _run(reading, judge, reference, settings, save_reference)
                )
            measured = [
                reading.measure(source, each.folder, held, own=not is_saved)
                for source, each in zip(sources, opened, strict=True)
            ]
        known = Vocabulary(vocabulary, rows - vocabulary)
        weights = max([shape.entries for shape in shapes.values()] + [held.weights if held else 0])
        return [
            estimate(
                str(source),
                each.texts[i],
                described[i],
                first=measured[0].texts[i] if j else None,
                vocabulary=known,
                overflows=exceeding[repr(str(source))],
                lost=each.lost[i],
                size=_size(opened[j], weights),
                runtime=each.runtime,
            )
            for i in range(len(texts))
            for j, (source, each) in enumerate(zip(sources, measured, strict=True))
        ]


def _short_digest(asked: Mapping[str, Any]) -> str:
    """Return what tells evaluations apart that run in one folder."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


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


def _overflows(folder: Path, texts: Sequence[Windows]) -> bool:
    """Tell whether float32 hides an overflow; elsewhere than on a CPU models run as stored."""
    return on_cpu() and bool(texts) and overflows(folder, texts[0].tokens[:, :-1])


def _same_windows(
    readers: Mapping[str, TokenReader],
    texts: Sequence[str | Path],
    rule: Convention,
    window: int,
    windows: int | None,
) -> list[Windows]:
    """Return the windows of each text; all checkpoints must cut it into the same tokens."""
    (first, reader), *others = readers.items()
    ids = _all_windows(reader, texts, rule, window, windows)
    for name, other in others:
        again = _all_windows(other, texts, rule, window, windows)
        for (_, ours), (_, theirs) in zip(ids, again, strict=True):
            if not np.array_equal(np.asarray(ours), np.asarray(theirs)):
                raise ValueError(
                    f"{name} splits the text into other tokens than {first}; "
                    "compare checkpoints of one tokenizer"
                )
    return ids


def _all_windows(
    reader: TokenReader,
    texts: Sequence[str | Path],
    rule: Convention,
    window: int,
    windows: int | None,
) -> list[Windows]:
    return [
        Windows(Path(text).name, reader.windows(text, length=window, limit=windows, cut=rule.cut))
        for text in texts
    ]


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
