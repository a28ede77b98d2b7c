"""The window of tokens that an output is checked on."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError

from plastic_export.calibration.text import Calibration
from plastic_export.calibration.vocabulary import embedding_rows
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.model.text import text_windows
from plastic_export.model.tokenizer import load_tokenizer

CHECK_LENGTH = 64
"""Tokens of the window."""
_LEAST_KINDS = 8  # different tokens, else the tokenizer does not know the text
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_TEXT = """\
The river rises in the hills behind the town, where three springs meet under an old bridge. In
winter it carries snow water and brown leaves; in summer children cross it on flat stones. A mill
stood here once. Its wheel turned until 1911, when the last miller sold the grain, locked the door
and moved to the coast with his two daughters. "We will come back," he said, but nobody did. Today
the house belongs to a baker who heats her oven with wood from the valley and opens at six.
"""


class CheckWindow(NamedTuple):
    """A short window of tokens.

    Attributes:
        text: What it was cut from: the name of a file, or words that say what it is.
        tokens: Token ids, int32, shape (1, length), all within the vocabulary.
    """

    text: str
    tokens: mx.array


def check_window(checkpoint: Checkpoint, calibration: Calibration | None) -> CheckWindow:
    """Return 64 tokens for a checkpoint, fewer where it knows fewer positions.

    They are the beginning of the first window of a calibration or, without one, of an English text
    that is part of this module. Where the checkpoint has no tokenizer that can be loaded, or one
    that does not know this text or knows more tokens than the model, they are drawn at random, the
    same every time.

    Args:
        checkpoint: The open source.
        calibration: Its text is taken.

    Raises:
        FormatError, ValueError, OSError: As ``calibration.tokens`` does.
    """
    length, rows = _length(checkpoint), embedding_rows(checkpoint.config)
    if calibration is not None:
        ids = calibration.tokens(checkpoint)[:1, :length]
        return CheckWindow(calibration.name, ids)
    try:
        ids = text_windows(load_tokenizer(checkpoint.folder), _TEXT, length=length, limit=1)
    except (FormatError, ValueError):
        return _drawn(rows, length)
    known = np.unique(np.asarray(ids))
    if known[-1] >= rows or len(known) < min(_LEAST_KINDS, length // 2):
        return _drawn(rows, length)
    return CheckWindow("an English text", ids)


def _drawn(vocabulary: int, length: int) -> CheckWindow:
    ids: NDArray[np.int64] = np.random.default_rng(0).integers(0, vocabulary, (1, length))
    return CheckWindow("random tokens", mx.array(ids.astype(np.int32)))


def _length(checkpoint: Checkpoint) -> int:
    """Return how long the window is: models with learned positions know so many alone."""
    config = checkpoint.config
    nested = config.get("text_config")
    stated = [c.get(name) for c in (config, nested) if isinstance(c, dict) for name in _POSITIONS]
    known = [n for n in stated if isinstance(n, int) and not isinstance(n, bool) and n >= 2]
    return min([CHECK_LENGTH, *known])
