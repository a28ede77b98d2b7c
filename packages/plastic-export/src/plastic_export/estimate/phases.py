"""The work of every command by the sizes of the model, with what was measured in constants.

``tools/bench/estimates.py`` prints what they give beside what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable

from plastic_export.estimate.model_shape import ModelShape, WeightShape
from plastic_export.estimate.speed import Work

FORWARD = 1.6
"""Time of a forward pass over that of its products: attention, norms, activations."""
LOGIT = 12.0
"""Entries that a logit is gone over as: softmax, divergence, coding."""
READING = 2.0
"""Entries that an entry of a weight is gone over as where it is read and widened."""
CALIBRATION = 5.0
"""Forward passes per token of the calibration, the Grams apart."""
PROBES = 1.4
"""Forward passes of the probe's windows for a group of matrices: at two widths, from a block on."""
PRICE = 1.0
"""Multiplications in float64 of a price per ``m n (m + n)``, for all widths together."""
ROUNDING = 3.0
"""The same of rounding a matrix in full."""
ROUNDED_ENTRY = 40.0
"""Entries that an entry of a matrix is gone over as where it is rounded."""
FACTORING = 8.0
"""Multiplications of a factorisation per ``m n min(m, n)``."""
LEARNING = 4.0
"""Forward passes per token of a step of healing or training, forwards and backwards."""
CHECK = 2 * 64
"""Tokens that the check of an output runs, through the source and through the output."""


def forward_work(shape: ModelShape, tokens: float) -> Work:
    """Return the work of forward passes of so many tokens, with what is made of the logits.

    Examples:
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     shape = ModelShape.of(checkpoint)
        >>> forward_work(shape, 2).products == 2 * forward_work(shape, 1).products
        True
    """
    return Work(
        products=FORWARD * tokens * shape.products_per_token,
        entries=LOGIT * tokens * shape.vocabulary,
    )


def evaluation_work(shape: ModelShape, tokens: float, runs: int) -> Work:
    """Return the work of running checkpoints of one shape over a text, block by block."""
    return (forward_work(shape, tokens) + Work(entries=READING * shape.entries)).times(runs)


def gram_work(weights: Iterable[WeightShape], tokens: float, widest: int) -> Work:
    """Return the work of summing both Grams of every matrix."""
    sides = ((w.outputs, w.inputs) for w in weights)
    per_token = sum(sum(n * min(n, widest) for n in pair) for pair in sides)
    return Work(products=tokens * per_token / 2)


def planning_work(
    shape: ModelShape,
    planned: Iterable[WeightShape],
    *,
    tokens: float,
    widest: int,
    probed: float,
    corrected: bool,
) -> Work:
    """Return the work of a plan: calibration, prices, probe.

    Args:
        shape: The model.
        planned: The matrices that are planned.
        tokens: Of the calibration.
        widest: Longest side with a whole Gram.
        probed: Tokens that the probe runs, for all groups together.
        corrected: Whether corrections are offered as well.
    """
    weights = list(planned)
    calibrated = forward_work(shape, tokens).times(CALIBRATION) + gram_work(weights, tokens, widest)
    priced = sum((_priced(w, corrected) for w in weights), Work())
    return calibrated + priced + forward_work(shape, probed).times(PROBES)


def writing_work(shape: ModelShape, planned: Iterable[WeightShape], *, ranks: bool) -> Work:
    """Return the work of writing what a plan says, or factors alone where ``ranks`` is set."""
    rounded = sum((_factored(w) if ranks else _rounded(w) for w in planned), Work())
    return rounded + forward_work(shape, CHECK) + Work(entries=READING * shape.entries)


def learning_work(shape: ModelShape, *, learnt: float, judged: float, trained: bool) -> Work:
    """Return the work of going forwards and backwards over tokens, and forwards over others.

    Args:
        shape: The model.
        learnt: Tokens that go forwards and backwards.
        judged: Tokens that go forwards alone.
        trained: Whether in mlx-lm's trainer, where products are MLX's own.
    """
    work = forward_work(shape, learnt).times(LEARNING) + forward_work(shape, judged)
    return work._replace(products=0.0, trained=work.products) if trained else work


def _priced(w: WeightShape, corrected: bool) -> Work:
    one = Work(doubles=PRICE * _cubic(w), entries=ROUNDED_ENTRY * w.entries)
    return one + (_factored(w) if corrected else Work())


def _rounded(w: WeightShape) -> Work:
    return Work(doubles=ROUNDING * _cubic(w), entries=ROUNDED_ENTRY * w.entries)


def _factored(w: WeightShape) -> Work:
    return Work(products=FACTORING * w.entries * min(w.outputs, w.inputs))


def _cubic(w: WeightShape) -> float:
    return float(w.entries) * (w.outputs + w.inputs)
