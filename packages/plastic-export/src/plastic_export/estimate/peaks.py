"""The memory of every command at its peak, by the sizes of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plastic_export.estimate.model_shape import ModelShape, WeightShape, entries_of

LIBRARIES = 150_000_000
"""Bytes of Python, MLX and the libraries."""
COMPILER = 150_000_000
"""Bytes of the compiled loops and what compiles them, where matrices are rounded."""
LOGIT_COPIES = 7
"""Arrays of the logits of a batch that are held at a time."""
ACTIVATIONS = 12
"""Arrays of the widest activation of a block that are held at a time."""
GRAM_COPIES = 3
"""Arrays as large as the Grams of a matrix, in float64: themselves, roots, work."""
WEIGHT_COPIES = 8
"""Arrays in float32 as large as a matrix that is rounded: itself, tiles, codes, error."""
PREDICTED = 2**30
"""Bytes at most of what the unchanged model predicts, for the probe."""


def running_peak(shape: ModelShape, rows: int, length: int) -> int:
    """Return the bytes of a forward pass of ``rows`` windows, block by block, in float32.

    Examples:
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     shape = ModelShape.of(checkpoint)
        >>> running_peak(shape, 8, 64) > running_peak(shape, 1, 64)
        True
    """
    return LIBRARIES + _widened(shape.outside) + _pass(shape, shape.largest_block, rows, length)


def whole_peak(shape: ModelShape, rows: int, length: int) -> int:
    """Return the bytes of a forward pass of a model that is held as a whole, in float32."""
    return LIBRARIES + _widened(shape.weights) + _pass(shape, [], rows, length)


def held_gram_bytes(weights: Iterable[WeightShape], widest: int) -> int:
    """Return the bytes of both Grams of weights in float64; along longer sides blocks are dense.

    Examples:
        >>> held_gram_bytes([WeightShape("a", 2, 3, 1, 12)], 4096)
        104
    """
    return sum(
        8 * w.matrices * (_dense(w.outputs, widest) + _dense(w.inputs, widest)) for w in weights
    )


def rounding_peak(weights: Sequence[WeightShape], widest: int) -> int:
    """Return the bytes of rounding or pricing the most demanding of the matrices, on its own."""
    return (
        LIBRARIES
        + COMPILER
        + max(
            (
                GRAM_COPIES * held_gram_bytes([w], widest) // w.matrices
                + WEIGHT_COPIES * 4 * w.outputs * w.inputs
                for w in weights
            ),
            default=0,
        )
    )


def calibration_peak(
    shape: ModelShape, planned: Sequence[WeightShape], *, rows: int, length: int, widest: int
) -> int:
    """Return the bytes of a calibration: the Grams of one block beside what a pass takes."""
    names = {w.name for w in planned}
    blocks = [*shape.blocks, shape.outside]
    held = max(held_gram_bytes([w for w in b if w.name in names], widest) for b in blocks)
    return running_peak(shape, rows, length) + held


def probing_peak(shape: ModelShape, *, tokens: int, length: int) -> int:
    """Return the bytes of the probe: the model as it is stored, and what it predicts unchanged."""
    predicted = min(PREDICTED, 4 * tokens * shape.vocabulary)
    stored = shape.nbytes + _widened(shape.outside)
    return LIBRARIES + COMPILER + stored + predicted + _pass(shape, [], 1, length)


def trying_peak(shape: ModelShape, *, tokens: int, length: int) -> int:
    """Return the bytes of a trial: those of the probe, and the errors of one block."""
    changed = 4 * (entries_of(shape.largest_block) + entries_of(shape.outside))
    return probing_peak(shape, tokens=tokens, length=length) + changed


def learning_peak(shape: ModelShape, rows: int, length: int, *, beside: int = 0) -> int:
    """Return the bytes of steps forwards and backwards through a model that is held as a whole.

    Args:
        shape: The model.
        rows: Rows of a batch.
        length: Tokens of a row.
        beside: Tokens of a window that runs beside the batch.
    """
    kept = ACTIVATIONS * len(shape.blocks) * 4 * (rows * length + beside) * shape.width
    logits = LOGIT_COPIES * 4 * beside * shape.vocabulary
    return whole_peak(shape, rows, length) + kept + logits


def _pass(shape: ModelShape, block: Sequence[WeightShape], rows: int, length: int) -> int:
    """What a pass holds beside the weights outside of the blocks."""
    tokens = 4 * rows * length
    widest = max((max(w.outputs, w.inputs) for w in shape.largest_block), default=1)
    scores = 3 * shape.heads * tokens * length
    within = _widened(block) + ACTIVATIONS * tokens * widest + scores
    return max(within, LOGIT_COPIES * tokens * shape.vocabulary)


def _widened(weights: Sequence[WeightShape]) -> int:
    """Weights in float32, and the largest of them as stored while it is widened."""
    return 4 * entries_of(weights) + max((w.nbytes for w in weights), default=0)


def _dense(side: int, widest: int) -> int:
    return side**2 if side <= widest else side
