"""Checkpoints on a text: their perplexity, their distance from a reference, the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError
from plastic_core.linalg import on_cpu
from plastic_runtime import Track, untracked

from plastic_export.calibration.overflow import overflows
from plastic_export.calibration.tokens import TokenReader
from plastic_export.checkpoint.finite import blaming_weights
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.evaluation.estimates import Evaluation, Vocabulary, estimate
from plastic_export.evaluation.measures import Reference, Windows, measure_texts
from plastic_export.model.load import load_for_inference

_HELD = 2**30  # bytes of the reference's log-probabilities that are held between checkpoints

_NOT_FINITE = (
    "look for NaN and infinities in the weights; a model stored in float16 may need bfloat16"
)


def evaluate(
    source: str | Path,
    texts: Sequence[str | Path],
    *,
    reference: str | Path | None = None,
    window: int = 256,
    windows: int = 24,
    tokenizer: str | Path | None = None,
    track: Track = untracked,
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
        window=window,
        windows=windows,
        tokenizer=tokenizer,
        track=track,
    )


def compare(
    sources: Sequence[str | Path],
    texts: Sequence[str | Path],
    *,
    reference: str | Path | None = None,
    window: int = 256,
    windows: int = 24,
    tokenizer: str | Path | None = None,
    track: Track = untracked,
) -> list[Evaluation]:
    """Measure perplexity and, against a reference, divergence and agreement on the same windows.

    A difference to the reference is far better determined by ``kl`` and ``top1``, which compare
    both models token by token, than by two perplexities: the windows' own variation cancels. So
    it does between two checkpoints whose divergences are subtracted window by window: their
    ``difference`` can be certain where their intervals overlap.

    The tokens of the tokenizer are compared: rows with which a vocabulary is padded take no part
    in any softmax, so that models padded differently are compared as well.

    Cost: the reference and one checkpoint in memory at a time, and of several checkpoints up to
    1 GiB of the reference's log-probabilities. Where these do not fit, the reference runs again
    for each checkpoint.

    Args:
        sources: Folders or Hub ids, in any format that this package writes or mlx-lm reads, all
            of one tokenizer. Each is compared with the first.
        texts: UTF-8 files, or files of token ids as in `Calibration`; each is measured by itself.
        reference: Checkpoint to compare with, of the same tokenizer.
        window: Tokens per window; each is run from an empty context.
        windows: How many windows at most, spread evenly over each text.
        tokenizer: Folder or Hub id of the tokenizer of all; by default each has its own.
        track: Wraps the loop over the batches of windows.

    Returns:
        One result per text and checkpoint: all checkpoints on the first text, in the order
        given, then all on the next.

    Raises:
        ValueError: If there is no source, a text is shorter than one window, or two tokenizers
            cut it differently.
        FormatError: If a checkpoint or a text cannot be read, or predictions are not finite.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If a file is missing or cannot be read.

    Examples:
        >>> first, second = compare(
        ...     ["PACKED", "FACTORED"], ["text.txt"], reference="SRC", window=24, windows=8
        ... )
        >>> second.difference.mean == second.kl - first.kl
        True
        >>> second.difference.verdict
        'worse'
    """
    if not sources:
        raise ValueError("`sources` must name at least one checkpoint, got none")
    opened = [_opened(source) for source in sources]
    named = {repr(str(source)): each for source, each in zip(sources, opened, strict=True)}
    judge = None
    if reference is not None:
        judge = named[f"`reference` {str(reference)!r}"] = _opened(reference)
    readers = {name: TokenReader(each, tokenizer) for name, each in named.items()}
    ids = _same_windows(readers, texts, window, windows)
    exceeding = {name: _overflows(each.folder, ids) for name, each in named.items()}
    vocabulary = min(reader.size for reader in readers.values())
    held = None
    if judge is not None:
        room = _HELD if len(sources) > 1 else 0
        held = Reference(load_for_inference(judge.folder), room=room, vocabulary=vocabulary)
    with blaming_weights(*named.values()):
        measured = [
            _measure(source, each.folder, ids, held, vocabulary, track)
            for source, each in zip(sources, opened, strict=True)
        ]
    known = Vocabulary(vocabulary, max(reader.rows for reader in readers.values()) - vocabulary)
    return [
        estimate(
            str(source),
            text,
            tokens[:, 1:].size,
            each[i],
            first=measured[0][i] if j else None,
            vocabulary=known,
            overflows=exceeding[repr(str(source))],
        )
        for i, (text, tokens) in enumerate(ids)
        for j, (source, each) in enumerate(zip(sources, measured, strict=True))
    ]


def _opened(source: str | Path) -> Checkpoint:
    """Return a checkpoint whose headers were checked; its weights are not read from here."""
    with open_checkpoint(source) as checkpoint:
        return checkpoint


def _overflows(folder: Path, texts: Sequence[Windows]) -> bool:
    """Tell whether float32 hides an overflow; elsewhere than on a CPU models run as stored."""
    return on_cpu() and bool(texts) and overflows(folder, texts[0].tokens[:, :-1])


def _same_windows(
    readers: Mapping[str, TokenReader], texts: Sequence[str | Path], window: int, windows: int
) -> list[Windows]:
    """Return the windows of each text; all checkpoints must cut it into the same tokens."""
    (first, reader), *others = readers.items()
    ids = _all_windows(reader, texts, window, windows)
    for name, other in others:
        again = _all_windows(other, texts, window, windows)
        for (_, ours), (_, theirs) in zip(ids, again, strict=True):
            if not np.array_equal(np.asarray(ours), np.asarray(theirs)):
                raise ValueError(
                    f"{name} splits the text into other tokens than {first}; "
                    "compare checkpoints of one tokenizer"
                )
    return ids


def _all_windows(
    reader: TokenReader, texts: Sequence[str | Path], window: int, windows: int
) -> list[Windows]:
    return [
        Windows(Path(text).name, reader.windows(text, length=window, limit=windows))
        for text in texts
    ]


def _measure(
    source: str | Path,
    folder: Path,
    texts: Sequence[Windows],
    reference: Reference | None,
    vocabulary: int,
    track: Track,
) -> list[NDArray[np.float64]]:
    """Measure a checkpoint on the texts; the model is gone when this returns."""
    model = load_for_inference(folder)
    measured = measure_texts(model, texts, reference, track, vocabulary=vocabulary)
    for (text, _), values in zip(texts, measured, strict=True):
        if not np.isfinite(values).all():
            reason = f"its predictions of {text}, or the reference's, are not finite"
            raise FormatError.about(source, reason, _NOT_FINITE)
    return measured
