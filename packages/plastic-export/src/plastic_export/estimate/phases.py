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
PULLING = 4.0
"""Forward passes per token that a gradient is taken of, the Grams and the pass of all apart."""
PROBES = 1.4
"""Forward passes of the probe's windows for a group of matrices: at two widths, from a block on."""
CHANGED = 2.0
"""Forward passes of a trial: what the weights give, and what is added to it."""
SPREADING = 1.0
"""Multiplications in float32 of an expected error, per ``m n (m + n)``."""
SAMPLED = 3
"""Widths in which the samples of a group are rounded in full."""
ROOT = 0.9
"""Multiplications in float64 of the root of a Gram, per third power of its side."""
PRICED_ENTRY = 30.0
"""Entries that an entry of a matrix is gone over as for the prices of all packings."""
ROUNDING = 1.2
"""Multiplications in float64 of rounding a matrix in full, roots of Grams and all, per
``m n (m + n)``."""
ROUNDED_ENTRY = 95.0
"""Entries that an entry of a matrix is gone over as where it is rounded in full."""
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


def counted_work(entries: int, sides: Iterable[int]) -> float:
    """Return what a matrix counts as where matrices are dealt out, in any unit.

    Examples:
        >>> counted_work(6, (2, 3))
        30
    """
    return entries * sum(sides)


def priced_work(w: WeightShape, widest: int, *, corrected: bool) -> Work:
    """Return the work of the prices of a matrix, or of those of a stack.

    Args:
        w: The matrix.
        widest: Longest side with a whole Gram.
        corrected: Whether corrections are offered as well.
    """
    return _priced(w, widest) + (_factored(w) if corrected else Work())


def measured_work(
    shape: ModelShape, samples: Iterable[WeightShape], tokens: float, widest: int
) -> Work:
    """Return the work of rounding the samples of a group in full, and of running the model."""
    one_each = (w._replace(matrices=1) for w in samples)  # a single expert of a stack
    rounded = sum((_rounded(w, widest) for w in one_each), Work()).times(SAMPLED)
    return rounded + forward_work(shape, tokens).times(PROBES)


def tried_work(w: WeightShape, widest: int, *, corrected: bool) -> Work:
    """Return the work of what a plan leaves of a matrix, about, where it is tried.

    Args:
        w: The matrix.
        widest: Longest side with a whole Gram.
        corrected: Whether corrections are offered, one of which every matrix is taken to have.

    Examples:
        >>> w = WeightShape("w", 64, 32, matrices=1, nbytes=4096)
        >>> plain, corrected = (tried_work(w, 4096, corrected=c) for c in (False, True))
        >>> plain.products < corrected.products, plain.doubles == corrected.doubles
        (True, True)
    """
    return _spread(w, widest) + (_factored(w) if corrected else Work())


def _spread(w: WeightShape, widest: int) -> Work:
    """Return the work of an expected error: both Grams factored, and solved for."""
    sides = _dense_sides(w, widest)
    roots = ROOT * w.matrices * sum(side**3 for side in sides)
    spread = SPREADING * w.entries * sum(sides)
    return Work(products=spread, doubles=roots, entries=READING * w.entries)


def writing_work(
    shape: ModelShape, planned: Iterable[WeightShape], *, widest: int, ranks: bool
) -> Work:
    """Return the work of writing what a plan says, or factors alone where ``ranks`` is set."""
    rounded = sum((_factored(w) if ranks else _rounded(w, widest) for w in planned), Work())
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


def _priced(w: WeightShape, widest: int) -> Work:
    sides = _dense_sides(w, widest)
    roots = ROOT * w.matrices * sum(side**3 for side in sides)
    return Work(doubles=roots, entries=PRICED_ENTRY * w.entries)


def _rounded(w: WeightShape, widest: int) -> Work:
    products = ROUNDING * w.entries * sum(_dense_sides(w, widest))
    return Work(doubles=products, entries=ROUNDED_ENTRY * w.entries)


def _factored(w: WeightShape) -> Work:
    return Work(products=FACTORING * w.entries * min(w.outputs, w.inputs))


def _dense_sides(w: WeightShape, widest: int) -> list[int]:
    """Return the sides along which a whole Gram is held."""
    return [side for side in (w.outputs, w.inputs) if side <= widest]
