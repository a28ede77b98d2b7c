"""The norm of a text: what its inputs, and the loss on it, make of the directions of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from plastic_core import GramRoot
from plastic_runtime import Track

from plastic_export.calibration.loss_grams import measure_loss_grams
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.extraction.whitening import DAMPING, Whitening

Norms = Callable[[str], Whitening]
"""The norm of a layer, by its path."""


@contextmanager
def norms_of(
    base: Checkpoint,
    calibration: Calibration | None,
    paths: list[str],
    folder: Path,
    track: Track,
) -> Iterator[Norms]:
    """Yield the norms of layers: those of a text, or the plain one where there is none.

    Args:
        base: The checkpoint that runs over the text.
        calibration: The text.
        paths: The layers.
        folder: Where the Grams are kept meanwhile.
        track: Wraps the loops of the measurement.

    Raises:
        FormatError: If the model or the text cannot be read.
        ValueError: If the text is shorter than a window, or an activation is not finite.
    """
    if calibration is None:
        yield lambda path: Whitening()
        return
    file = folder / "grams"
    with measure_loss_grams(base, calibration, paths, file, track=track) as grams:

        def of(path: str) -> Whitening:
            if path not in grams:
                return Whitening()
            roots = (GramRoot.of(g.matrix, damping=DAMPING) for g in grams[path])
            return Whitening(*roots)

        yield of
    file.unlink()
