"""Carry out a plan: a checkpoint in mixed bits, with or without corrections of low rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, noting, sha256_file
from plastic_runtime import GramFile, LossGrams, Track, untracked
from plastic_runtime.distributed import Team, check_alike, working_together
from plastic_runtime.measure import LONGEST_DENSE_SIDE

from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.foreseen import foresee_writing
from plastic_export.compression.nested import SizeRange, nested_plan
from plastic_export.compression.plan_file import LossPlan, check_source, grams_file, read_plan
from plastic_export.compression.writer import (
    Compressed,
    Recipe,
    compressed,
    help_writing,
    write_compressed,
)
from plastic_export.estimate.limits import Say
from plastic_export.evaluation.output_check import OutputChecker
from plastic_export.folder.manifest import together_facts
from plastic_export.format.arranging import arranged
from plastic_export.format.layout import Contents
from plastic_export.format.table import format_named
from plastic_export.plan.choices import candidate
from plastic_export.plan.gram_uses import Uses, combined_grams, is_measured
from plastic_export.plan.offers import BitsPlan, Candidate
from plastic_export.source.source import Source


def execute_plan(
    source: str | Path,
    out: str | Path,
    plan_file: str | Path,
    *,
    budget: float | str | None = None,
    sizes: SizeRange | None = None,
    revision: str | None = None,
    force: bool = False,
    exact: bool = False,
    check: bool = True,
    memory: int | None = None,
    say: Say | None = None,
    track: Track = untracked,
    team: Team | None = None,
) -> Compressed[BitsPlan]:
    """Write the checkpoint that a plan describes, in a format that stock mlx-lm loads.

    Every matrix is stored as it was when it was priced; all other tensors are copied bit for bit.
    The plan's format says where corrections go: beside the backbones, for ``plastic_model.py``
    (``"corrected"``), or into ``out/adapters`` (``"adapter"``). One matrix and its Grams are in
    memory at a time. Nothing appears at ``out`` before everything is written and synced. A run that
    was cut is gone on with as by `compress`.

    Args:
        source: The source of the plan: folder or Hub id.
        out: Folder to write; must not exist, or be empty.
        plan_file: File that ``plan_checkpoint`` wrote, its file of Grams beside it.
        budget: Which of the plan's: bits per weight, or as the plan states it
            (``BitsPlan.asked``); may be left out where it holds one.
        sizes: A range of sizes in place of a budget: the output has the largest, and `dial` brings
            it to any other; see `nested_plan`. Of the format ``"corrected"``.
        revision: Commit or branch, for a Hub id.
        force: Replace ``out`` where it is an earlier output, and what a run with other arguments
            left; see `compress`.
        exact: Also write ``exact.safetensors``, so that ``restore`` gives back every bit.
        check: Run one window of text through the source and through the output before it is
            published; see `compress`.
        memory: Bytes of memory that it may take; by default what the machine has.
        say: Is told in a line what the work will take, unless that is next to nothing.
        track: Wraps the loop over the tensors.
        team: The processes that write together, each with the same arguments, in a folder that all
            of them see; by default this one alone. Matrices are dealt out; what is written is the
            same, byte for byte, for any number of them on machines of one kind.

    Raises:
        FormatError: If the plan is damaged or of another source (the difference is named), its
            Grams are missing or others, a file of the source is damaged, or an adapter cannot
            hold the plan's corrections.
            Also if a run of other options, versions or another source was cut, unless ``force``.
        FailedCheckError: If the output cannot be run, or its divergence is far beyond what was
            predicted.
        ValueError: If the plan does not hold the budget, or the work does not fit into memory.
        BusyError: If another process is writing ``out``.
        OSError: If reading or writing fails. What is finished is kept for the next run.

    Examples:
        >>> result = execute_plan("SRC", "OUT", "plan.json")
        >>> result.plan.asked, verify("OUT")
        ('4.5', [])
    """
    file, team = Path(plan_file), team or Team()
    asked = {
        "source": str(source),
        "revision": revision,
        "plan": str(plan_file),
        "budget": budget,
        "range": str(sizes),
        "force": force,
        "exact": exact,
        "check": check,
    }
    with working_together(team, Path(out), together_facts(asked)):
        plans = read_plan(file)
        plan = plans.budget(budget) if sizes is None else _for_range(plans, sizes)
        options = _options(plans, plan, file, exact=exact)
        check_alike(team, Path(out), options)
        with open_checkpoint(source, revision=revision) as checkpoint:
            check_source(plans, checkpoint, file)
            traced = Source.of(checkpoint)
            _check_matrices(plans, traced, file)
            with GramFile(grams_file(plans, file)) as grams:
                _check_measured(plans, grams, file)
                matrices = [m.matrix for m in plans.matrices]
                contents = Contents.of(format_named(plans.format), matrices, plan.chosen)
                recipe = Recipe(traced, arranged(traced, contents), _combined(grams))
                foresee_writing(
                    checkpoint,
                    [m for m in matrices if plan.chosen[m.name].bits or plan.chosen[m.name].rank],
                    nbytes=recipe.layout.nbytes,
                    checked=check,
                    widest=plans.calibration.get("widest", LONGEST_DENSE_SIDE),
                    memory=memory,
                    say=say,
                )
                if not team.leads:
                    done = help_writing(checkpoint, out, options, recipe, track=track, team=team)
                    return compressed(done, out, plan, checkpoint, None)
                done, checked = write_compressed(
                    checkpoint,
                    out,
                    options,
                    lambda journal: recipe,
                    checker=OutputChecker(checkpoint, predicted=plan.predicted) if check else None,
                    force=force,
                    track=track,
                    nbytes=recipe.layout.nbytes,
                    team=team,
                )
            return compressed(done, out, plan, checkpoint, checked)


def _for_range(plans: LossPlan, sizes: SizeRange) -> BitsPlan:
    """Return the plan of a range, of a format whose outputs can be dialled."""
    if not format_named(plans.format).dials:
        raise ValueError(
            f"`range` must be left out of a plan in the format {plans.format}, which cannot be "
            f"dialled, got {sizes}; plan again with --format corrected"
        )
    return nested_plan(plans.matrices, sizes)


def _options(plans: LossPlan, plan: BitsPlan, file: Path, *, exact: bool) -> dict[str, Any]:
    """Return what the output depends on besides its source."""
    return {
        "format": plans.format,
        "budget": plan.asked,
        "bits_per_weight": plan.budget,
        "plan_sha256": sha256_file(file),
        "calibration": dict(plans.calibration),
        "exact": exact,
    }


def _combined(grams: GramFile) -> Callable[[Candidate], Iterator[LossGrams]]:
    """Return the Grams to round a matrix under, or each expert of a stack."""

    def of(m: Candidate) -> Iterator[LossGrams]:
        uses = Uses(m, grams)
        for expert in range(m.matrices):
            with noting(f"at {m.name!r}"):
                combined = combined_grams(uses.of(expert))
            yield combined

    return of


def _check_matrices(plans: LossPlan, source: Source, file: Path) -> None:
    """Refuse matrices that are not as the source has them."""
    for m in plans.matrices:
        stands = candidate(source.layers[m.name]) if m.name in source.layers else None
        if stands != m.matrix:
            reason = f"{m.name!r} is not described as the source has it"
            remedy = "edit nothing but its bits and ranks, or plan again"
            raise FormatError.about(file, reason, remedy)


def _check_measured(plans: LossPlan, grams: GramFile, file: Path) -> None:
    """Refuse a plan for matrices without Grams."""
    for m in plans.matrices:
        if not is_measured(m.matrix, grams):
            reason = f"nothing was measured at {m.name!r}, which the plan names"
            raise FormatError.about(file, reason, "remove it, or plan again")
