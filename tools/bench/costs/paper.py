"""A model of 7 billion parameters on paper: the sum of what its parts took.

Nothing of it runs as a whole. Measured are: a block of that width under two numbers of tokens, so
that what each token takes is told from what each block takes; the same with the head's vocabulary;
the price and the rounding of every shape; a forward pass, which the probe of prices is counted in.
Seconds on so many cores are processor seconds over cores: every core is taken to be busy all the
time, with other matrices or other rows of the same product.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from costs.measurements import Figures, Measurements
from costs.scale import Scale
from costs.shapes import llama

WINDOW = 256
SPARE = 512  # tokens of a vocabulary that a block is measured with
BITS = 4
PROBED = 8 * WINDOW  # tokens of one measurement of the probe of prices


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
    prices = rounding = 0.0
    for (rows, columns), count in shapes.items():
        shape = {"rows": rows, "columns": columns}
        prices += count * measure.of("price", **shape, format="mixed")["cpu"]
        rounding += count * measure.of("round", **shape, bits=BITS)["cpu"]
    parts = _passes(measure, scale, len(matrices)) | {"prices": prices, "rounding": rounding}
    return Sum(parts, sum(m.weights for m in matrices))


def _passes(measure: Measurements, scale: Scale, probes: int) -> dict[str, float]:
    """Seconds of the calibration, and of the windows that the probe of prices runs."""

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
        "probe": forward * PROBED * probes,
    }
