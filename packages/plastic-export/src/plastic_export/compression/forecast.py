"""What a plan will take in one process or several, told instead of making it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plastic_runtime.measure import LONGEST_DENSE_SIDE

from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.foreseen import ForeseenPlan
from plastic_export.compression.planning import check_plan_place, grams_beside
from plastic_export.compression.selecting import Selected
from plastic_export.estimate.limits import START
from plastic_export.estimate.processes import PlanEstimate, check_gigabits, estimate_processes
from plastic_export.estimate.speed import Speed, measured_speed
from plastic_export.format.table import PLAN_FORMATS, format_named
from plastic_export.plan.budgets import Budget, stated_budgets
from plastic_export.plan.choices import Choices

GIGABITS = 1.0
"""Of the network where nobody says more: Ethernet as most machines have it."""


def estimate_plan(
    source: str | Path,
    file: str | Path,
    *,
    calibration: Calibration,
    budgets: Sequence[float | Budget],
    format: str = "mixed",
    choices: Choices | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = True,
    widest: int = LONGEST_DENSE_SIDE,
    thorough: bool = False,
    revision: str | None = None,
    force: bool = False,
    memory: int | None = None,
    processes: int = 1,
    gigabits: float = GIGABITS,
    speed: Speed | None = None,
) -> PlanEstimate:
    """Say what `plan_checkpoint` with the same arguments will take; nothing is written.

    One process is taken to be on each machine, and the model to be a chain of blocks. Refused is
    what the plan would refuse before its work.

    Cost: reads headers and the text, builds a pass of one token, and tries this machine for half a
    second.

    Args:
        source: As for `plan_checkpoint`, like what is not named here.
        file: The plan; the time of a calibration counts where its Grams are not beside it.
        calibration: Text and amount.
        budgets: Those to be planned for.
        format: What is to be written.
        choices: What to offer.
        include: Patterns of matrices to take.
        exclude: Patterns of matrices to leave alone.
        embeddings: Whether embeddings are among them.
        widest: The longest side of a dense Gram.
        thorough: Whether every matrix is rounded in every way.
        revision: Commit or branch.
        force: Whether the plan may be replaced.
        memory: Bytes of memory that each process may take: what needs more is refused.
        processes: How many work together.
        gigabits: Gigabits per second from machine to machine, and to the folder that is shared.
        speed: Of each machine; by default that of this one, which is tried.

    Raises:
        FormatError, ValueError, OSError: As `plan_checkpoint` does before its work, and if there
            are more processes than batches of the text, or ``gigabits`` is not from 0.001 to
            100,000.

    Examples:
        >>> few = Calibration("text.txt", window=24, windows=8)
        >>> found = estimate_plan("SRC", "new.json", calibration=few, budgets=[4.5])
        >>> len(found.machines), found.machines[0].sends, found.faster
        (1, 0, 1.0)
    """
    check_gigabits(gigabits)
    file, target = Path(file), format_named(format, PLAN_FORMATS)
    choices, stated = choices or target.choices or Choices(), stated_budgets(budgets)
    with open_checkpoint(source, revision=revision) as checkpoint:
        check_plan_place(file, force)
        selected = Selected.of(checkpoint, include, exclude, embeddings=embeddings)
        selected.check_budgets(stated, choices, target)
        foreseen = ForeseenPlan.of(
            checkpoint,
            selected.wanted,
            calibration,
            widest=widest,
            corrected=bool(choices.factor_bits),
            thorough=thorough,
            is_calibrated=grams_beside(file).exists(),
            budgets=len(stated),
        )
    if memory is not None:
        foreseen.announce(memory, None)
    return estimate_processes(
        foreseen.work,
        speed or measured_speed(),
        processes=processes,
        gigabits=gigabits,
        start=START,
        memory=foreseen.memory,
        disk=foreseen.disk,
    )
