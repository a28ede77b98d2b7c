"""The work of a plan by the sizes of the model, in the pieces that processes share."""

from __future__ import annotations

from collections.abc import Sequence

from plastic_export.estimate.model_shape import ModelShape, WeightShape
from plastic_export.estimate.parts import Calibrated, calibration_parts, opening_work
from plastic_export.estimate.phases import (
    CHANGED,
    counted_work,
    forward_work,
    measured_work,
    priced_work,
    tried_work,
)
from plastic_export.estimate.processes import DealtWork, PlanWork, TriedWork
from plastic_export.estimate.speed import Work


def planning_work(
    shape: ModelShape,
    calibrated: Calibrated,
    *,
    tokens: float,
    pulled: float,
    batches: int,
    groups: Sequence[Sequence[WeightShape]],
    repeated: int = 1,
    probed: int,
    corrected: bool,
    tried: int,
    trial: int,
) -> PlanWork:
    """Return the work of a plan: calibration, prices, the runs that correct them, trials.

    Args:
        shape: The model.
        calibrated: The matrices that are planned.
        tokens: Of the calibration; 0 where the Grams are there.
        pulled: Those that gradients are taken of.
        batches: Into how many batches the text is cut.
        groups: The matrices of every group that are rounded in full.
        repeated: How many times as often as usual.
        probed: Tokens that every group runs.
        corrected: Whether corrections are offered as well.
        tried: How many plans are tried.
        trial: Tokens that each of them runs.

    Examples:
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     shape = ModelShape.of(checkpoint)
        >>> work = planning_work(
        ...     shape,
        ...     Calibrated(shape.weights, frozenset(), {}, widest=4096),
        ...     tokens=0,
        ...     pulled=0,
        ...     batches=1,
        ...     groups=[],
        ...     probed=0,
        ...     corrected=False,
        ...     tried=2,
        ...     trial=64,
        ... )
        >>> len(work.parts), len(work.priced.pieces), work.tried.plans
        (0, 16, 2)
    """
    weights, widest = calibrated.planned, calibrated.widest
    parts = calibration_parts(shape, calibrated, tokens=tokens, pulled=pulled) if tokens else []
    costs = [counted_work(w.entries, (w.outputs, w.inputs)) for w in weights]
    grams = [2.0 * w.matrices * (w.outputs**2 + w.inputs**2) for w in weights]
    return PlanWork(
        opening_work(shape),
        parts,
        batches,
        DealtWork(costs, [priced_work(w, widest, corrected=corrected) for w in weights], grams),
        DealtWork(
            [sum(counted_work(w.entries, (w.outputs, w.inputs)) for w in g) for g in groups],
            [measured_work(shape, g, probed, widest).times(repeated) for g in groups],
            [sum(2.0 * (w.outputs**2 + w.inputs**2) for w in g) for g in groups],
            forward_work(shape, trial),
        ),
        _tried(shape, weights, grams, widest, corrected=corrected, plans=tried, tokens=trial),
    )


def _tried(
    shape: ModelShape,
    weights: Sequence[WeightShape],
    grams: Sequence[float],
    widest: int,
    *,
    corrected: bool,
    plans: int,
    tokens: int,
) -> TriedWork:
    """Return the work of trying plans, by the blocks that the matrices are in."""
    blocks, read, own = dict[str, Work](), dict[str, float](), Work()
    for w, nbytes in zip(weights, grams, strict=True):
        work = tried_work(w, widest, corrected=corrected)
        if w.block is None:
            own += work
            continue
        blocks[w.block] = blocks.get(w.block, Work()) + work
        read[w.block] = read.get(w.block, 0.0) + nbytes
    run = forward_work(shape, tokens).times(CHANGED)
    return TriedWork(
        plans, own, [*blocks.values()], run, 4 * tokens * shape.width, [*read.values()]
    )
