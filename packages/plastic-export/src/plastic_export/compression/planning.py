"""Plan a checkpoint: calibrate once, price every matrix, spend every budget."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from plastic_core.files import FormatError, sha256_file
from plastic_runtime import GramFile, Track, untracked
from plastic_runtime.distributed import Team, check_alike, working_together
from plastic_runtime.measure import LONGEST_DENSE_SIDE

from plastic_export.calibration.loss_grams import measure_loss_grams
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.finite import blaming_weights
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import (
    module_path,
)
from plastic_export.compression.foreseen import ForeseenPlan
from plastic_export.compression.plan_file import (
    LossPlan,
    Skipped,
    is_plan,
    source_identity,
    write_plan,
)
from plastic_export.compression.selecting import Remainder, Selected, overhead_of
from plastic_export.estimate.limits import Say, check_disk
from plastic_export.folder.claiming import claimed_file
from plastic_export.folder.manifest import together_facts, versions
from plastic_export.format.protocol import Format
from plastic_export.format.table import PLAN_FORMATS, format_named
from plastic_export.model.tokenizer import tokenizer_digests
from plastic_export.plan.budgets import Budget, stated_budgets
from plastic_export.plan.choices import Choices
from plastic_export.plan.gram_uses import (
    DAMPING,
    INPUT_SHRINKAGE,
    OUTPUT_SHRINKAGE,
    is_measured,
)
from plastic_export.plan.offers import (
    BitsPlan,
    Candidate,
    Offered,
    plan_bits,
)
from plastic_export.plan.price_journal import PriceJournal, check_price_journal
from plastic_export.plan.prices import price
from plastic_export.plan.probe import PriceProbe
from plastic_export.plan.trial import PlanTrial
from plastic_export.plan.tried import tried_plans
from plastic_export.process.interruption import saying_when_interrupted
from plastic_export.source.source import Source

UNMEASURED = "nothing was measured there"


def plan_checkpoint(
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
    say: Say | None = None,
    track: Track = untracked,
    team: Team | None = None,
) -> LossPlan:
    """Choose how to store every linear layer and embedding by the predicted effect on the loss.

    The rise of the KL divergence to the source is predicted for every matrix and every way of
    storing it from the Grams of its inputs and output gradients: bits and group size of a backbone
    under GPTQ's error feedback (``predicted_cost``), and ranks and bits of a correction beside it
    or alone (``correction_costs``). Embeddings, whose inputs are tokens, and stacks of experts, of
    one width each, are offered backbones alone; of tied weights the costs of both uses are added. A
    matrix may also stay as it is, which costs nothing: a source in 4 bits, groups of 64, that is
    asked for 4.5 bits per weight is left unchanged. A few of each
    group of alike matrices are rounded in full and run, which corrects the prices of the group
    (``plastic_export.plan.prices``), and one allocation per budget does the rest. Each is tried as
    a whole, and so is one width for all in the same bytes; the better one is taken
    (``plastic_export.plan.tried``), and what it was found to cost is the prediction.
    The Grams stay beside the plan, under its name with ``.grams.npz``: a run that was cut goes on
    from there, one for other budgets or formats finds them complete, and ``execute_plan`` needs
    them. Until the plan is written its prices are there too, under its name with ``.prices``: a run
    that was cut goes on with the matrices that are not priced yet.

    Args:
        source: Folder, or Hub id, of a checkpoint that mlx-lm can run.
        file: JSON file to write.
        calibration: Text and amount.
        budgets: Plain numbers are bits on disk per entry of the planned matrices, embeddings and
            experts among them, scales and factors counted.
        format: What is to be written: ``"mixed"``, bits and group size per matrix, which everything
            built on mlx-lm loads; ``"corrected"``, bits and ranks, with a model file beside the
            weights; ``"adapter"``, bits and a stock adapter of one rank.
        choices: What to offer for each matrix; by default all that the format allows.
        include: Glob patterns of the matrices to take; by default every linear layer, the output
            head included, every embedding and stack of experts, but no router.
        exclude: Glob patterns of matrices to leave alone.
        embeddings: Whether embeddings are among them.
        widest: The longest side of a dense Gram; along longer ones blocks are measured (see
            ``measure_grams``).
        thorough: Whether every matrix is rounded in every way on offer, and run by itself, to price
            it: many times the work of a quick plan.
        revision: Commit or branch, for a Hub id.
        force: Replace ``file`` where it exists, and Grams beside it that are damaged or were
            measured of something else.
        memory: Bytes of memory that it may take; by default what the machine has.
        say: Is told in a line what the work will take, unless that is next to nothing.
        track: Wraps every long loop.
        team: The processes that plan together, each with the same arguments, in a folder that all
            of them see; by default this one alone. The plan is the same, byte for byte, for any
            number of them on machines of one kind. The first one writes it.

    Returns:
        What was written.

    Raises:
        FormatError: If a file is damaged, a weight is not finite, or ``file`` exists and is not to
            be replaced or is no plan.
        ValueError: If the text is too short, an activation is not finite, a budget is below the
            least possible or above the size of the source, or the work does not fit into memory.
        BusyError: If another process is making ``file``.
        OSError: If a file cannot be read or written.

    Examples:
        >>> few, size = Calibration("text.txt", window=24, windows=8), Budget("size", 70_000)
        >>> choices = Choices(bits=(4, 8))
        >>> plan = plan_checkpoint(
        ...     "SRC", "small.json", calibration=few, budgets=[size], choices=choices
        ... )
        >>> print(plan.budgets[0].asked, plan.budgets[0].nbytes + plan.left_bytes <= 70_000)
        70000 bytes True
    """
    file, target, team = Path(file), format_named(format, PLAN_FORMATS), team or Team()
    choices = choices or target.choices or Choices()
    stated = stated_budgets(budgets)
    options = {
        "source": str(source),
        "revision": revision,
        "calibration": {name: str(value) for name, value in asdict(calibration).items()},
        "budgets": list(map(str, stated)),
        "format": format,
        "choices": asdict(choices),
        "include": [*include],
        "exclude": [*exclude],
        "embeddings": embeddings,
        "widest": widest,
        "thorough": thorough,
        "force": force,
    }
    with (
        working_together(team, file, together_facts(options)),
        claimed_file(file) if team.leads else nullcontext(),
        open_checkpoint(source, revision=revision) as checkpoint,
    ):
        check_plan_place(file, force)
        selected = Selected.of(checkpoint, include, exclude, embeddings=embeddings)
        selected.check_budgets(stated, choices, target)
        traced, wanted, left = selected.source, selected.wanted, selected.left
        _check_room(grams_beside(file), wanted, widest)
        foreseen = ForeseenPlan.of(
            checkpoint,
            wanted,
            calibration,
            widest=widest,
            corrected=bool(choices.factor_bits),
            thorough=thorough,
            is_calibrated=grams_beside(file).exists(),
            budgets=len(stated),
        )
        foreseen.announce(memory, say)
        identity = source_identity(checkpoint)
        check_alike(team, file, {"source": identity})

        def spend(offered: Sequence[Offered], trial: PlanTrial) -> tuple[Remainder, Plans]:
            """Return the plans, tried, and what is left beside the matrices that were priced."""
            fewer = len(offered) < len(wanted)
            rest = Remainder.of(traced, [m.matrix for m in offered]) if fewer else left
            return rest, _spent(rest, offered, stated, target, trial, track)

        measured = _priced(
            traced,
            identity,
            wanted,
            choices,
            calibration,
            file,
            widest,
            thorough,
            force,
            spend,
            track,
            team,
        )
        plan = LossPlan(
            source=identity,
            calibration=calibration.record()
            | {
                "damping": DAMPING,
                "shrinkage": [INPUT_SHRINKAGE, OUTPUT_SHRINKAGE],
                "widest": widest,
                "thorough": thorough,
                "unreached_experts": measured.unreached,
            },
            grams=(grams_beside(file).name, measured.grams),
            matrices=measured.offered,
            left=measured.left.weights,
            left_bytes=measured.left.nbytes,
            budgets=measured.budgets,
            format=format,
            skipped=(*selected.skipped, *measured.skipped),
        )
        checkpoint.check_unchanged()
        if team.leads:
            write_plan(file, plan)
        _prices(file, team.rank).unlink(missing_ok=True)
    return plan


def _check_room(grams: Path, wanted: Sequence[Candidate], widest: int) -> None:
    """Refuse before the work a disk that the triangles of the output Grams alone would fill."""
    if grams.exists():
        return
    dense = [m for m in wanted if m.kind != "embedding" and m.shape[0] <= widest]
    parts = grams.with_name(f"{grams.name}.parts").glob("*")
    needed = sum(2 * m.matrices * m.shape[0] ** 2 for m in dense) - sum(
        part.stat().st_size for part in parts
    )
    check_disk(grams.parent, needed, grams)


Plans = tuple[BitsPlan, ...]


class _Priced(NamedTuple):
    """Offers, plans, what is left beside them, and the digest of the Grams.

    Also the number of experts that no token reached, and what nothing measured.
    """

    offered: tuple[Offered, ...]
    left: Remainder
    budgets: Plans
    grams: str
    unreached: int
    skipped: tuple[Skipped, ...]


Spend = Callable[[Sequence[Offered], PlanTrial], tuple["Remainder", Plans]]


def grams_beside(file: Path) -> Path:
    """Return the file of Grams beside a plan."""
    return file.with_suffix(".grams.npz")


def _prices(file: Path, rank: int = 0) -> Path:
    """Return the file beside a plan that holds a process's prices until it is written."""
    return file.with_suffix(f".prices.{rank}" if rank else ".prices")


def _other_prices(file: Path) -> list[Path]:
    """Return the files in which other processes of a run that was cut left prices."""
    first = _prices(file).name
    return sorted(path for path in file.parent.glob(f"{glob.escape(first)}.*") if _is_rank(path))


def _is_rank(path: Path) -> bool:
    return path.suffix[1:].isdecimal()


def _priced(
    source: Source,
    identity: Mapping[str, Any],
    wanted: Sequence[Candidate],
    choices: Choices,
    calibration: Calibration,
    file: Path,
    widest: int,
    thorough: bool,
    replace: bool,
    spend: Spend,
    track: Track,
    team: Team,
) -> _Priced:
    """Measure the Grams of the matrices, price those that the text reached, and plan them."""
    paths, checkpoint = [module_path(m.name) for m in wanted], source.checkpoint
    with (
        saying_when_interrupted(lambda: _waiting(file)),
        blaming_weights(checkpoint),
        measure_loss_grams(
            checkpoint,
            calibration,
            paths,
            grams_beside(file),
            widest=widest,
            replace=replace,
            track=track,
            team=team,
        ) as grams,
    ):
        run = [m for m in wanted if is_measured(m, grams)]
        unmeasured = tuple(
            Skipped(m.name, m.source_bytes, UNMEASURED) for m in wanted if m not in run
        )
        if not run:
            raise ValueError(f"{UNMEASURED} of the {len(wanted)} layers; compress them by rank")
        unreached = unreached_experts(run, grams)
        probe = PriceProbe.of(checkpoint, calibration)
        digest = team.told(sha256_file(grams_beside(file)) if team.leads else None)
        depends = _price_identity(checkpoint, identity, calibration, choices, digest)
        depends["thorough"] = thorough
        with _price_journal(file, depends, team) as journal:
            offered = price(
                source,
                run,
                grams,
                choices,
                probe=probe,
                thorough=thorough,
                journal=journal,
                track=track,
                team=team,
            )
            left, plans = spend(offered, PlanTrial(source, grams, offered, probe, journal, team))
        return _Priced(offered, left, plans, digest, unreached, unmeasured)


def _price_journal(file: Path, depends: Mapping[str, Any], team: Team) -> PriceJournal:
    """Return the journal of this process; the first one takes over what others left."""
    if team.leads:
        journal = PriceJournal(_prices(file), depends, _other_prices(file))
        team.gathered(None)
        return journal
    team.gathered(None)  # what was left is taken over
    return PriceJournal(_prices(file, team.rank), depends)


def _price_identity(
    checkpoint: Checkpoint,
    source: Mapping[str, Any],
    calibration: Calibration,
    choices: Choices,
    grams: str,
) -> dict[str, Any]:
    """Return all that prices depend on."""
    return {
        "source": source,
        "tokenizer": tokenizer_digests(checkpoint),
        "calibration": calibration.record(),
        "grams": grams,
        "choices": asdict(choices),
        "device": str(mx.default_device()),
        "versions": versions(),
    }


def _waiting(file: Path) -> list[str]:
    """Say what the same command goes on with."""
    grams = grams_beside(file)
    places = grams, grams.with_name(f"{grams.name}.parts"), _prices(file), *_other_prices(file)
    return [f"{place}: the same command goes on with it" for place in places if place.exists()]


def _spent(
    left: Remainder,
    offered: Sequence[Offered],
    budgets: Sequence[Budget],
    format: Format,
    trial: PlanTrial,
    track: Track,
) -> Plans:
    """Return the plan of every budget."""
    left_bytes, overhead = left.nbytes + left.header_bytes, overhead_of(left, format)
    plans = plan_bits(
        offered, budgets, left_bytes=left_bytes, one_rank=format.one_rank, overhead=overhead
    )

    return tried_plans(
        plans, budgets, offered, trial, left_bytes=left_bytes, overhead=overhead, track=track
    )


def check_plan_place(file: Path, force: bool) -> None:
    """Refuse before the work what could not or must not be replaced after it.

    Files beside the plan have its name with other endings: ``plan.v1`` would share them with
    ``plan.v2``.
    """
    if file.suffix != ".json":
        raise FormatError.about(file, "the name of a plan ends in .json", "choose such a name")
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise FormatError.about(file, "it is a link or a folder", "choose another file")
    if file.exists() and not force:
        raise FormatError.about(file, "it exists", "choose another file, or add --force")
    if file.exists() and not is_plan(file):
        raise FormatError.about(file, "it exists and is no plan", "choose another file")
    for prices in (_prices(file), *_other_prices(file)):
        check_price_journal(prices)
    if force and not file.exists() and grams_beside(file).exists():
        GramFile(grams_beside(file)).close()  # which refuses what no plan of ours stands beside


def unreached_experts(planned: Sequence[Candidate], grams: GramFile) -> int:
    """Count the experts that no token of the text reached: they get the Grams of the others."""
    paths = (f"{module_path(m.name)}.{e}" for m in planned for e in range(m.experts))
    return sum(path in grams and grams.count(path) == 0 for path in paths)
