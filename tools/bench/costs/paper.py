"""A model of 7 billion parameters on paper: the sum of what its parts took.

Nothing of it runs as a whole. Measured are: a block of that width under two numbers of tokens, so
that what each token takes is told from what each block takes; the same with the head's vocabulary;
the price and the rounding of every shape; a forward pass. Prices are corrected by samples of every
group of alike matrices: these are counted as roundings, at 4 bits all of them, and the model runs
with them from the first block that is changed on.
Seconds on so many cores are processor seconds over cores: every core is taken to be busy all the
time, with other matrices or other rows of the same product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from plastic_export import Candidate
from plastic_export.plan import alike, in_a_block, samples_of

from costs.measurements import Figures, Measurements
from costs.scale import Scale
from costs.shapes import llama

WINDOW = 256
SPARE = 512  # tokens of a vocabulary that a block is measured with
BITS = 4
PROBED = 2048  # tokens that the model runs with samples on
ROUNDED, RUN = 3, 2  # widths in which samples of blocks are rounded, and run; others in all of them


@dataclass(frozen=True)
class Sum:
    """Processor seconds by part, and the parameters of the model."""

    parts: dict[str, float]
    parameters: int

    def per_billion(self, cores: int) -> float:
        """Return the seconds per billion parameters on so many cores."""
        return sum(self.parts.values()) / cores / (self.parameters / 1e9)


def seven_billion(measure: Measurements, scale: Scale) -> Sum:
    """Measure the parts, and add them up."""
    matrices = llama(scale.layers, scale.hidden, scale.inner, scale.vocabulary)
    shapes = Counter(m.shape for m in matrices)
    groups = alike(matrices)
    sampled = Counter(m.shape for group in groups for m in samples_of(group))
    prices = samples = rounding = 0.0
    for (rows, columns), count in shapes.items():
        shape = {"rows": rows, "columns": columns}
        prices += count * measure.of("price", **shape, format="mixed")["cpu"]
        once = measure.of("round", **shape, bits=BITS)["cpu"]
        samples += ROUNDED * sampled[rows, columns] * once
        rounding += count * once
    passes = sum(_passes_with(group, scale.layers) for group in groups)
    parts = _passes(measure, scale, passes)
    parts |= {"prices": prices, "samples": samples, "rounding": rounding}
    return Sum(parts, sum(m.weights for m in matrices))


def _passes_with(group: Sequence[Candidate], layers: int) -> float:
    """How many forward passes the samples of a group take: from the first block changed on."""
    first = samples_of(group)[0]
    if not in_a_block(first):
        return ROUNDED
    return RUN * (1 - int(first.name.split(".")[2]) / layers)


def _passes(measure: Measurements, scale: Scale, passes: float) -> dict[str, float]:
    """Seconds of the calibration, and of so many forward passes of the probe of prices."""

    def block(windows: int, vocabulary: int) -> Figures:
        size = {"width": scale.hidden, "inner": scale.inner, "vocabulary": vocabulary}
        return measure.of("calibrate", blocks=1, **size, windows=windows, window=WINDOW)

    few, more = block(scale.block_windows[0], SPARE), block(scale.block_windows[1], SPARE)
    head = block(scale.block_windows[1], scale.vocabulary)
    per_token = (more["cpu"] - few["cpu"]) / (more["tokens"] - few["tokens"])
    per_block = max(0.0, few["cpu"] - per_token * few["tokens"])
    of_head = max(0.0, head["cpu"] - more["cpu"]) / head["tokens"]
    tokens = scale.windows * scale.window
    forward = scale.layers * more["forward"]["cpu"] / more["tokens"]
    forward += (head["forward"]["cpu"] - more["forward"]["cpu"]) / head["tokens"]
    return {
        "calibration": scale.layers * (per_token * tokens + per_block) + of_head * tokens,
        "probe": forward * PROBED * passes,
    }
