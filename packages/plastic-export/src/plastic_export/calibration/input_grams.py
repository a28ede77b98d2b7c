"""From a calibration text to the input Gram of every matrix."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from plastic_runtime import Track, input_grams, untracked

from plastic_export.calibration.overflow import overflows
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.model.load import load_for_inference

Grams = Mapping[str, NDArray[np.float64]]
"""Mean of ``x x^T`` over the tokens, shape (in, in), by module path."""


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
    tokens = calibration.tokens(checkpoint)
    overflows(checkpoint.folder, tokens)
    model = load_for_inference(checkpoint.folder)
    grams = input_grams(model, track([row[None] for row in tokens], "calibrating"))
    return {path: gram.matrix for path, gram in grams.items()}
