"""The parts of a calibration: after each of them its sums go from process to process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from plastic_core import block_side
from plastic_runtime.measure import is_dense

from plastic_export.estimate.model_shape import ModelShape, WeightShape, entries_of
from plastic_export.estimate.phases import FORWARD, LOGIT, PULLING, READING
from plastic_export.estimate.speed import Work

DIGESTED_BYTE = 0.5
"""Entries that a byte of the weights is gone over as where it is digested, twice."""
_FLOAT = 4  # bytes of an entry of a sum, and of what enters a block
_TRIALS = 3  # runs of a model that show whether it is a chain
_TRIAL = 32  # tokens of each


class CalibrationPart(NamedTuple):
    """A part of a calibration.

    Attributes:
        work: Of all tokens; every process has a share of it.
        own: Of every process, whatever its share: weights are read.
        handed: Bytes of the sums, which go from each process to the next.
        spooled: Bytes that all tokens take on their way into the folder that is shared, and out.
    """

    work: Work
    own: Work
    handed: int
    spooled: float


class Calibrated(NamedTuple):
    """What is measured.

    Attributes:
        planned: The matrices with Grams.
        embeddings: The names of those that are embeddings.
        shared: By name of a matrix, the first one which the same array enters; itself by default.
        widest: Longest side with a whole Gram.

    Examples:
        >>> embedding, query = WeightShape("e", 9, 4, 1, 72), WeightShape("h.0.q", 4, 4, 1, 32)
        >>> measured = Calibrated([embedding, query], frozenset("e"), {}, widest=4096)
        >>> measured.ahead() == [embedding], measured.within("h.0.") == [query]
        (True, True)
    """

    planned: Sequence[WeightShape]
    embeddings: frozenset[str]
    shared: Mapping[str, str]
    widest: int

    def within(self, block: str | None) -> list[WeightShape]:
        """Return the matrices of a block, or those that follow the blocks, tied ones among them."""
        inside = [w for w in self.planned if w.block == block]
        if block is not None:
            return inside
        return [w for w in inside if w.name not in self.embeddings] or inside

    def ahead(self) -> list[WeightShape]:
        """Return the embeddings."""
        return [w for w in self.planned if w.name in self.embeddings and w.block is None]


def calibration_parts(
    shape: ModelShape, calibrated: Calibrated, *, tokens: float, pulled: float
) -> list[CalibrationPart]:
    """Return the parts of a calibration in their order: forwards, the head, backwards.

    Args:
        shape: The model, taken to be a chain of blocks.
        calibrated: What is measured.
        tokens: Of the calibration.
        pulled: Those that gradients are taken of.

    Examples:
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     shape = ModelShape.of(checkpoint)
        >>> calibrated = Calibrated(shape.weights, frozenset(), {}, widest=4096)
        >>> len(calibration_parts(shape, calibrated, tokens=8, pulled=4)) == 2 + 2 * 2
        True
    """
    blocks = {weights[0].block: weights for weights in shape.blocks}
    entering = _FLOAT * shape.width
    ahead, head = calibrated.ahead(), calibrated.within(None)
    enter = CalibrationPart(
        Work(),
        Work(),
        sum(8 * w.outputs for w in ahead),
        entering * (tokens + pulled),
    )
    through = [
        CalibrationPart(
            _passed(shape, weights, tokens)
            + _summed(calibrated, calibrated.within(block), tokens, 0.0),
            _read(weights),
            _input_bytes(calibrated, calibrated.within(block)),
            entering * (2 * tokens + pulled),
        )
        for block, weights in blocks.items()
    ]
    logits = Work(
        products=FORWARD * pulled * shape.vocabulary * shape.width,
        entries=LOGIT * pulled * shape.vocabulary,
    )
    leave = CalibrationPart(
        logits.times(PULLING) + _summed(calibrated, head, tokens, pulled),
        _read(shape.outside),
        _input_bytes(calibrated, head) + _output_bytes(calibrated, head),
        entering * (tokens + pulled),
    )
    back = [
        CalibrationPart(
            _passed(shape, weights, pulled).times(PULLING)
            + _summed(calibrated, calibrated.within(block), 0.0, pulled),
            _read(weights) + _passed(shape, weights, _TRIAL).times(2 * PULLING),
            _output_bytes(calibrated, calibrated.within(block)),
            3 * entering * pulled,
        )
        for block, weights in reversed(blocks.items())
    ]
    before = CalibrationPart(
        _looked_up(calibrated, ahead, pulled),
        Work(),
        sum(lower_bytes(w.inputs, calibrated.widest) for w in ahead),
        entering * pulled,
    )
    return [enter, *through, leave, *back, *([before] if ahead else [])]


def opening_work(shape: ModelShape) -> Work:
    """Return the work of each process before the first part: all is digested, and tried."""
    digested = Work(entries=DIGESTED_BYTE * shape.nbytes)
    inside = [w for w in shape.weights if w.block is not None]
    return digested + (_passed(shape, inside, _TRIAL) + _read(shape.weights)).times(_TRIALS)


def lower_bytes(side: int, widest: int, *, count: int = 1, blocks: bool = True) -> int:
    """Return the bytes of the lower triangles of some sums, of which longer ones are in blocks.

    Args:
        side: Their side.
        widest: The longest side of a whole sum.
        count: How many there are: all whole, or a single one in their place.
        blocks: Whether a longer one is kept in blocks, and not as its diagonal.

    Examples:
        >>> lower_bytes(3, 8), lower_bytes(32, 8, blocks=False)
        (24, 128)
    """
    if is_dense(side, widest, count=count):
        return _FLOAT * count * side * (side + 1) // 2
    if is_dense(side, widest):
        return _FLOAT * side * (side + 1) // 2
    edge = block_side(side) if blocks else 1
    return _FLOAT * side * (edge + 1) // 2


def _count(w: WeightShape, widest: int) -> int:
    """Return how many sums a stack has: one for all where they are too many."""
    return w.matrices if is_dense(max(w.outputs, w.inputs), widest, count=w.matrices) else 1


def _input_bytes(calibrated: Calibrated, weights: Iterable[WeightShape]) -> int:
    widest = calibrated.widest
    return sum(
        lower_bytes(w.inputs, widest, count=_count(w, widest))
        for w in _entered_first(calibrated, weights)
    )


def _output_bytes(calibrated: Calibrated, weights: Iterable[WeightShape]) -> int:
    widest = calibrated.widest
    return sum(
        lower_bytes(w.outputs, widest, count=_count(w, widest), blocks=False) for w in weights
    )


def _entered_first(calibrated: Calibrated, weights: Iterable[WeightShape]) -> list[WeightShape]:
    """Return those of the matrices which no matrix before them shares its inputs with."""
    return [w for w in weights if calibrated.shared.get(w.name, w.name) == w.name]


def _summed(
    calibrated: Calibrated, weights: Sequence[WeightShape], tokens: float, pulled: float
) -> Work:
    """Return the work of summing the inputs of some tokens and the gradients of others."""
    widest = calibrated.widest
    inputs = sum(
        tokens * w.inputs * min(w.inputs, widest) for w in _entered_first(calibrated, weights)
    )
    outputs = sum(pulled * w.outputs * min(w.outputs, widest) for w in weights)
    return Work(products=(inputs + outputs) / 2)


def _looked_up(calibrated: Calibrated, embeddings: Sequence[WeightShape], pulled: float) -> Work:
    sides = (min(w.inputs, calibrated.widest) * w.inputs for w in embeddings)
    return Work(products=pulled * sum(sides) / 2)


def _passed(shape: ModelShape, weights: Iterable[WeightShape], tokens: float) -> Work:
    return Work(products=FORWARD * tokens * shape.products_in(weights))


def _read(weights: Iterable[WeightShape]) -> Work:
    return Work(entries=READING * entries_of(weights))
