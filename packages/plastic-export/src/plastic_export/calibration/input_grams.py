"""From a calibration text to the input Gram of every matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plastic_runtime import Track, input_grams, untracked

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.model.load import load_for_inference, load_tokenizer, read_text, text_windows

Grams = Mapping[str, NDArray[np.float64]]
"""Mean of ``x x^T`` over the tokens, shape (in, in), by module path."""


@dataclass(frozen=True)
class Calibration:
    """A calibration text and how much of it to use.

    Attributes:
        text: UTF-8 text file.
        window: Tokens per window; each is run on its own, from an empty context.
        windows: How many windows at most, spread evenly over the text.
    """

    text: Path
    window: int = 256
    windows: int = 128

    def record(self) -> dict[str, Any]:
        """Return the entry of the manifest: the digest of the text, not its place."""
        digest = hashlib.sha256(self.text.read_bytes()).hexdigest()
        return {"sha256": digest, "window": self.window, "windows": self.windows}


def calibrate(
    checkpoint: Checkpoint, calibration: Calibration, *, track: Track = untracked
) -> dict[str, NDArray[np.float64]]:
    """Run the text through the model and collect ``E[x x^T]`` at every linear layer.

    Args:
        checkpoint: The open source. Its whole model is loaded for this step.
        calibration: The text and how much of it.
        track: Wraps the loop over the windows.

    Returns:
        Input Gram by module path, float64, symmetric and positive semi-definite. Layers that see
        the same input share one array.

    Raises:
        ValueError: If the text holds fewer tokens than one window.
    """
    tokens = text_windows(
        load_tokenizer(checkpoint.folder),
        read_text(calibration.text),
        length=calibration.window,
        limit=calibration.windows,
    )
    model = load_for_inference(checkpoint.folder)
    grams = input_grams(model, track([row[None] for row in tokens], "calibrating"))
    return {path: gram.matrix for path, gram in grams.items()}
