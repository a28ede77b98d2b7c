"""Text that the base knows: what forgetting is measured on, and what is remembered in training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from plastic_export.calibration.notes import note_what_is_missing
from plastic_export.calibration.text import Calibration
from plastic_export.calibration.tokens import TokenReader
from plastic_export.model.text import evenly_spread
from plastic_export.training.settings import TrainingOptions

LENGTH = 256  # tokens of a window
MEASURED = 16  # windows
REMEMBERED = 256  # windows at most


class BaseText(NamedTuple):
    """Windows of text that is not trained on, token ids, and how the text is told from another.

    Attributes:
        measured: What forgetting is measured on, shape (windows, length); None where it is not.
        remembered: What a run remembers, other windows of the same length; None where nothing is.
        identity: The digest of the text; empty where there is none.
    """

    measured: mx.array | None
    remembered: mx.array | None
    identity: dict[str, Any]


def read_base_text(
    reader: TokenReader, training: TrainingOptions, text: str | os.PathLike[str] | None
) -> BaseText:
    """Read the windows that a run asks for.

    Args:
        reader: Reads it in the tokens of the base.
        training: ``forget`` asks for windows to measure on, ``remember`` for others.
        text: The text; None for the texts of many kinds that come along.

    Raises:
        FormatError: If the text cannot be read.
        ValueError: If there is a text and neither asks for it, or it is too short.
    """
    if training.forget is None and training.remember is None:
        if text is not None:
            raise ValueError(
                f"`base_text` must be None where there is no `forget` and no `remember`, got {text}"
            )
        return BaseText(None, None, {})
    known = Calibration(None if text is None else Path(text), min(LENGTH, training.window))
    windows = reader.windows(known.file, length=known.window)
    note_what_is_missing(known.file, windows, reader, is_all=True)
    measured = evenly_spread(min(MEASURED, len(windows)), len(windows))
    others = np.setdiff1d(np.arange(len(windows)), measured)
    if training.remember is not None and not len(others):
        raise ValueError(
            f"`base_text` must have more than {MEASURED} windows of {known.window} tokens to be "
            f"remembered, as {MEASURED} are to measure on, got {len(windows)} in {known.file}"
        )
    remembered = others[evenly_spread(min(REMEMBERED, training.steps, len(others)), len(others))]
    return BaseText(
        None if training.forget is None else windows[mx.array(measured)],
        None if training.remember is None else windows[mx.array(remembered)],
        {"base text": known.record()["sha256"]},
    )
