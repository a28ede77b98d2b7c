"""Texts in windows of the tokens that all checkpoints to be compared have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from plastic_core.linalg import on_cpu

from plastic_export.calibration.overflow import overflows
from plastic_export.calibration.tokens import TokenReader
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.evaluation.convention import CONVENTIONS, OWN, Convention, Like
from plastic_export.evaluation.measures import Windows
from plastic_export.evaluation.settings import (
    EvaluationSettings,
    reference_settings,
    settings_of,
)


class CommonTexts(NamedTuple):
    """What checkpoints are to be measured on.

    Attributes:
        texts: The windows of each text.
        settings: What a result depends on beside the checkpoint, of each text.
        asked: What log-probabilities depend on beside the model, by the names for messages.
        context: How many tokens of each window are read before one is scored.
        vocabulary: How many tokens all checkpoints have.
        rows: How many the widest of them has logits for.
        overflows: Whether float32 hides an overflow of a checkpoint, by its name.
    """

    texts: list[Windows]
    settings: list[EvaluationSettings]
    asked: dict[str, Any]
    context: int
    vocabulary: int
    rows: int
    overflows: dict[str, bool]

    @classmethod
    def of(
        cls,
        checkpoints: Mapping[str, Checkpoint],
        texts: Sequence[str | Path],
        tokenizer: str | Path | None,
        like: Like | None,
        window: int | None,
        windows: int | None,
    ) -> CommonTexts:
        """Cut the texts; arguments are those of `compare`, the checkpoints by their names.

        Raises:
            FormatError, ValueError, OSError: If a text cannot be read or is too short, or two
                checkpoints cut it into other tokens.
        """
        rule = CONVENTIONS[like] if like else OWN
        window = rule.window if window is None else window
        windows = rule.windows if windows is None else windows
        readers = {name: TokenReader(each, tokenizer) for name, each in checkpoints.items()}
        cut = _same_windows(readers, texts, rule, window, windows)
        exceeding = {name: _overflows(each.folder, cut) for name, each in checkpoints.items()}
        prefixes = next(iter(readers.values())).prefixes
        settings = [
            settings_of(file, each.tokens, prefixes[str(file)], like)
            for file, each in zip(texts, cut, strict=True)
        ]
        return cls(
            cut,
            settings,
            reference_settings(settings, window, windows),
            rule.context(window),
            min(reader.size for reader in readers.values()),
            max(reader.rows for reader in readers.values()),
            exceeding,
        )

    @property
    def windows(self) -> int:
        """How many windows there are, of all texts together."""
        return sum(len(tokens) for _, tokens in self.texts)

    def among(self, vocabulary: int) -> CommonTexts:
        """Return the same where only so many tokens take part."""
        return self._replace(vocabulary=min(self.vocabulary, vocabulary))


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
