"""A model of 7 billion parameters on paper: the sum of what its parts took.

Nothing of it runs as a whole. Measured are: a block of that width under two numbers of tokens and
of gradients, so that what each of them takes is told from what each block takes; the same with the
head's vocabulary; the price and the rounding of every shape; a forward pass. Prices are corrected
by samples of every group of alike matrices, which take as many times a rounding as a square one
does, and the model runs with them from the first block that is changed on. One plan is tried.
Seconds on so many cores are processor seconds over cores: every core is taken to be busy all the
time, with other matrices or other rows of the same product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kept.measurements import Figures, Measurements
from plastic_export import Candidate
from plastic_export.calibration import pulled_tokens
from plastic_export.plan import PROBED_TOKENS, TRIED_TOKENS, alike, in_a_block, samples_of

from costs.scale import Scale
from costs.shapes import llama

WINDOW = 256
SPARE = 512  # tokens of a vocabulary that a block is measured with
BITS = 4
CHANGED = 2  # products of a layer whose weight is changed
ROUNDED, RUN = (2, 3, 4), 2  # widths of samples; in how many those in blocks are run


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
    prices = samples = errors = rounding = 0.0
    per_rounding = _roundings_of_a_sample(measure, scale.hidden)
    for (rows, columns), count in shapes.items():
        shape = {"rows": rows, "columns": columns}
        prices += count * measure.of("price", **shape, format="mixed")["cpu"]
        once = measure.of("round", **shape, bits=BITS)["cpu"]
        rounding += count * once
        errors += count * measure.of("foresee", **shape, bits=BITS)["cpu"]
        samples += sampled[rows, columns] * per_rounding * once
    passes = sum(_passes_with(group, scale.layers) for group in groups)
    parts = _passes(measure, scale, passes)
    parts["trial"] += errors
    parts |= {"prices": prices, "samples": samples, "rounding": rounding}
    return Sum(parts, sum(m.weights for m in matrices))


def _roundings_of_a_sample(measure: Measurements, side: int) -> float:
    """How many times as long as its rounding a square matrix takes that is rounded as a sample."""
    square = {"rows": side, "columns": side}
    sample = measure.of("sample", **square, bits=[*ROUNDED])["cpu"]
    return float(sample / measure.of("round", **square, bits=BITS)["cpu"])


def _passes_with(group: Sequence[Candidate], layers: int) -> float:
    """How many forward passes the samples of a group take: from the first block changed on."""
    first = samples_of(group)[0]
    if not in_a_block(first):
        return len(ROUNDED)
    return RUN * (1 - int(first.name.split(".")[2]) / layers)


def _passes(measure: Measurements, scale: Scale, passes: float) -> dict[str, float]:
    """Seconds of the calibration, of so many passes of the probe of prices, and of a trial's."""

    def block(windows: int, gradients: int, vocabulary: int) -> Figures:
        size = {"width": scale.hidden, "inner": scale.inner, "vocabulary": vocabulary}
        amount = {"windows": windows, "window": WINDOW, "gradients": gradients}
        return measure.of("calibrate", blocks=1, **size, **amount)

    few, many = scale.block_windows
    least, more, most = block(few, few, SPARE), block(many, few, SPARE), block(many, many, SPARE)
    head = block(many, many, scale.vocabulary)
    added = most["tokens"] - least["tokens"]
    forwards, backwards = (more["cpu"] - least["cpu"]) / added, (most["cpu"] - more["cpu"]) / added
    per_block = max(0.0, least["cpu"] - (forwards + backwards) * least["tokens"])
    of_head = max(0.0, head["cpu"] - most["cpu"]) / head["tokens"]
    tokens = scale.windows * scale.window
    pulled = pulled_tokens(tokens, max(scale.hidden, scale.inner), routed=False)
    in_block = forwards * tokens + backwards * pulled + per_block
    forward = scale.layers * most["forward"]["cpu"] / most["tokens"]
    forward += (head["forward"]["cpu"] - most["forward"]["cpu"]) / head["tokens"]
    return {
        "calibration": scale.layers * in_block + of_head * pulled,
        "probe": forward * PROBED_TOKENS * passes,
        "trial": CHANGED * forward * TRIED_TOKENS,
    }
