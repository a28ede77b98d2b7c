"""What a plan, and what carrying one out, will take: told, or refused, before the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plastic_runtime.measure import LONGEST_DENSE_SIDE

from plastic_export.calibration.loss_grams import pulled_tokens, rows_at_a_time
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.estimate.limits import Estimate, Say, Smaller, announce
from plastic_export.estimate.model_shape import ModelShape, WeightShape
from plastic_export.estimate.peaks import (
    LIBRARIES,
    calibration_peak,
    held_gram_bytes,
    rounding_peak,
    running_peak,
    trying_peak,
)
from plastic_export.estimate.phases import SAMPLED, planning_work, writing_work
from plastic_export.evaluation.check_window import CHECK_LENGTH
from plastic_export.plan.likeness import alike, samples_of
from plastic_export.plan.offers import Candidate
from plastic_export.plan.probe import PROBED_TOKENS, TRIED_TOKENS

_NARROWEST = 256
_PACKINGS = 18  # bits and group sizes, of which each is rounded for a thorough plan


def foresee_plan(
    checkpoint: Checkpoint,
    wanted: Sequence[Candidate],
    calibration: Calibration,
    *,
    widest: int,
    corrected: bool,
    thorough: bool,
    is_calibrated: bool,
    budgets: int,
    memory: int | None,
    say: Say | None,
) -> None:
    """Tell what a plan will take.

    Args:
        checkpoint: The open source.
        wanted: The matrices that are planned.
        calibration: The text and how much of it.
        widest: The longest side of a dense Gram.
        corrected: Whether corrections are offered.
        thorough: Whether every matrix is rounded in every way on offer, and run by itself.
        is_calibrated: Whether the Grams are there already.
        budgets: How many there are: a plan is tried for each, and rarely a second one.
        memory: Bytes of memory that it may take; None for what the machine has.
        say: Takes the line.

    Raises:
        ValueError: If it does not fit into memory; a smaller ``widest`` or the matrix to exclude
            is named, where that helps.
    """
    shape, planned = ModelShape.of(checkpoint), _shapes(wanted)
    windows = len(calibration.all_tokens(checkpoint))  # refused where it is shorter than one
    tokens = min(calibration.windows, windows) * calibration.window
    rows = rows_at_a_time(calibration.window, shape.longest_activation)
    dense = (w.outputs for w in planned if w.outputs <= widest)
    routed = any(w.matrices > 1 for w in planned)
    pulled = pulled_tokens(tokens, max(dense, default=0), routed)

    def peak(planned: Sequence[WeightShape], widest: int) -> int:
        measured = calibration_peak(
            shape, planned, rows=rows, length=calibration.window, widest=widest
        )
        tried = trying_peak(shape, tokens=TRIED_TOKENS, length=calibration.window)
        return max(measured, tried, rounding_peak(planned, widest))

    def smaller() -> Iterator[Smaller]:
        side = 1 << max(max(w.outputs, w.inputs) for w in planned).bit_length() - 1
        while side >= _NARROWEST:
            if side < widest:
                yield Smaller(f"--widest {side}", peak(planned, side))
            side //= 2
        largest = max(planned, key=lambda w: w.outputs * w.inputs)
        rest = [w for w in planned if w is not largest]
        yield Smaller(f"--exclude {largest.name}", peak(rest, widest))

    groups = [[m] for m in wanted] if thorough else alike(wanted)
    repeated = _PACKINGS // SAMPLED if thorough else 1
    work = planning_work(
        shape,
        planned,
        tokens=0 if is_calibrated else tokens,
        pulled=0 if is_calibrated else pulled,
        widest=widest,
        probed=PROBED_TOKENS * len(groups),
        sampled=_shapes([m for group in groups for m in samples_of(group)] * repeated),
        corrected=corrected,
        tried=budgets,
        trial=TRIED_TOKENS,
    )
    spooled = 4 * shape.width * (pulled * len(shape.blocks) + 2 * tokens)
    disk = held_gram_bytes(planned, widest) // 4 + (0 if is_calibrated else spooled)
    estimate = Estimate(work, peak(planned, widest), disk)
    announce(estimate, memory=memory, say=say, smaller=smaller())


def foresee_writing(
    checkpoint: Checkpoint,
    chosen: Sequence[Candidate],
    *,
    nbytes: int,
    checked: bool,
    ranks: bool = False,
    widest: int = LONGEST_DENSE_SIDE,
    memory: int | None,
    say: Say | None,
) -> None:
    """Tell what writing a compressed checkpoint will take.

    Args:
        checkpoint: The open source.
        chosen: The matrices that are stored anew.
        nbytes: Bytes of the output, about.
        checked: Whether a window runs through it in the end.
        ranks: Whether they become factors alone.
        widest: The longest side of a dense Gram.
        memory: Bytes of memory that it may take; None for what the machine has.
        say: Takes the line.

    Raises:
        ValueError: If it does not fit into memory.
    """
    shape, planned = ModelShape.of(checkpoint), _shapes(chosen)
    worker = LIBRARIES  # the process beside this one
    one = worker + rounding_peak(planned, 0 if ranks else widest)
    run = running_peak(shape, 1, CHECK_LENGTH) if checked else 0
    smaller = [Smaller("--no-check", one)] if run > one else []
    estimate = Estimate(
        writing_work(shape, planned, widest=widest, ranks=ranks), max(one, run), nbytes
    )
    announce(estimate, memory=memory, say=say, smaller=smaller)


def _shapes(wanted: Sequence[Candidate]) -> list[WeightShape]:
    return [WeightShape(m.name, *m.shape, m.matrices, m.source_bytes) for m in wanted]
