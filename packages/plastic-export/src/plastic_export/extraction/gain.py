"""How much of what was learnt an adapter gives: the losses of base, adapter and tuned on a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plastic_runtime import Track

from plastic_export.calibration.text import Calibration
from plastic_export.calibration.tokens import TokenReader
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.estimate.model_shape import ModelShape
from plastic_export.evaluation.measures import Windows
from plastic_export.evaluation.reading import Reading

WINDOWS = 24
"""Of the text, which are measured by default."""


@dataclass(frozen=True)
class Gain:
    """Mean losses in nats per token on the same windows of a text.

    Attributes:
        text: Name of the text.
        tokens: How many tokens were scored.
        base: Loss of the base.
        adapted: Loss of the base with the adapter for mlx-lm.
        tuned: Loss of the tuned checkpoint.

    Examples:
        >>> Gain("text.txt", 100, base=3.0, adapted=2.2, tuned=2.0).share
        0.8
    """

    text: str
    tokens: int
    base: float
    adapted: float
    tuned: float

    @property
    def share(self) -> float | None:
        """The part of the fall of the loss that the adapter gives; None where none was to be."""
        if self.base <= self.tuned:
            return None
        return round((self.base - self.adapted) / (self.base - self.tuned), 4)


def reading_of(
    base: Checkpoint, tuned: Checkpoint, text: Calibration, *, memory: int | None, track: Track
) -> Reading:
    """Cut a text into the windows on which the losses are to be measured; no model runs yet.

    Args:
        base: The base, whose tokenizer is taken.
        tuned: What was made of it.
        text: The text and how much of it.
        memory: Bytes of memory that the runs may take; None for what the machine has.
        track: Wraps the loops over the blocks.

    Raises:
        FormatError: If the text or the tokenizer cannot be read.
        ValueError: If the text is shorter than a window.
    """
    reader = TokenReader(base, text.tokenizer)
    windows = Windows(text.name, text.cut(reader))
    shapes = {c.folder: ModelShape.of(c) for c in (base, tuned)}
    return Reading([windows], reader.size, reader.rows, shapes, memory, track)


def measure_gain(reading: Reading, base: Checkpoint, tuned: Checkpoint, adapter: Path) -> Gain:
    """Run base, base with adapter, and tuned over the windows of a text, block by block.

    Args:
        reading: What they are run over.
        base: The base.
        tuned: What was made of it.
        adapter: Folder of an adapter over the base, in mlx-lm's form.

    Raises:
        FormatError: If a model cannot be read, or no prediction is finite.
    """
    runs = ((base, None), (base, adapter), (tuned, None))
    losses = [
        reading.measure(each.name, each.folder, None, adapter=beside).texts[0].nll
        for each, beside in runs
    ]
    before, with_it, after = (float(nll.mean()) for nll in losses)
    return Gain(reading.texts[0].text, losses[0].size, before, with_it, after)
