"""From a calibration text to both Grams of every matrix, and a file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_runtime import LossGrams, loss_grams

from plastic_export.calibrate import Calibration
from plastic_export.closing import Closing
from plastic_export.models import load_model, load_tokenizer, read_text, text_windows
from plastic_export.reader import Checkpoint
from plastic_export.track import Track, untracked

_TOKENS = 2048  # at most so many in one pass, unless one window has more
_LOGITS = 2**22  # and so many logits, held several times over by the backward pass


def measure(
    checkpoint: Checkpoint,
    calibration: Calibration,
    paths: Sequence[str],
    cache: Path,
    *,
    track: Track = untracked,
) -> dict[str, LossGrams]:
    """Run the text through the model, forwards and backwards, and collect the Grams.

    Args:
        checkpoint: The open source. Its whole model is loaded for this step, in float32.
        calibration: The text and how much of it.
        paths: Module paths of the linear layers to measure.
        cache: File for the sums: a run that was cut goes on from there.
        track: Wraps the loop over the batches of windows.

    Returns:
        The Grams of every layer that was run, by module path; what several layers see is one
        object.

    Raises:
        FormatError: If the model or the text cannot be read.
        ValueError: If the text holds fewer tokens than one window, an activation or a gradient is
            not finite (a note names the layer), or ``cache`` is of another run.
    """
    tokens = _tokens(checkpoint, calibration)
    model = load_model(checkpoint.folder)
    model.set_dtype(mx.float32)
    rows = max(1, min(_TOKENS, _LOGITS // _vocabulary(model, tokens)) // tokens.shape[1])
    batches = track([tokens[i : i + rows] for i in range(0, len(tokens), rows)], "calibrating")
    return loss_grams(model, batches, paths=paths, cache=cache)


def _tokens(checkpoint: Checkpoint, calibration: Calibration) -> mx.array:
    try:
        return text_windows(
            load_tokenizer(checkpoint.folder),
            read_text(calibration.text),
            length=calibration.window,
            limit=calibration.windows,
        )
    except ValueError as error:
        error.add_note(f"in {calibration.text}")
        raise


def _vocabulary(model: nn.Module, tokens: mx.array) -> int:
    size: int = model(tokens[:1, :1]).shape[-1]
    return size


class InputGrams(Closing):
    """The input Grams in a file that `measure` left, read one at a time. A context manager.

    Args:
        file: The file, known to be one of ours.
    """

    def __init__(self, file: Path) -> None:
        self._content = np.load(file, allow_pickle=False)
        meta = json.loads(self._content["header"].tobytes())["meta"]
        self._sites: dict[str, str] = meta["sites"]
        self._counts: dict[str, int] = meta["counts"]

    def read(self, path: str) -> NDArray[np.float64]:
        """The mean of ``x x^T`` over the inputs of a layer, shape (in, in); bit for bit that of
        `measure`.
        """
        site = self._sites[path]
        total: NDArray[np.float64] = self._content[f"input.{site}"]
        total /= max(self._counts[site], 1)
        return total

    def close(self) -> None:
        """Close the file."""
        self._content.close()
