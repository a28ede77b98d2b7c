"""Plan a checkpoint: calibrate once, price every matrix, spend every budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plastic_runtime.files import FormatError, sha256_file

from plastic_export.budgets import Budget, check_budget
from plastic_export.calibrate import Calibration
from plastic_export.calibration_loss import measure
from plastic_export.lossplan import Candidate, Format, Offered, plan_bits, totals_of
from plastic_export.matrices import ROUTERS, compressible, module_path
from plastic_export.models import linear_paths
from plastic_export.planfile import LossPlan, is_plan, source_identity, write_plan
from plastic_export.priceprobe import PriceProbe
from plastic_export.pricing import CHOICES, DAMPING, Choices, candidate, least_bytes, price
from plastic_export.reader import Checkpoint, open_checkpoint
from plastic_export.track import Track, untracked

WIDEST = 16_384
"""Matrices with a longer side stay as they are: such a Gram would take over 2 GiB."""


def plan_checkpoint(
    source: str | Path,
    file: str | Path,
    *,
    calibration: Calibration,
    budgets: Sequence[float | Budget],
    format: Format = "mixed",
    choices: Choices | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    revision: str | None = None,
    force: bool = False,
    track: Track = untracked,
) -> LossPlan:
    """Choose how to store every linear layer by the predicted effect on the loss.

    The rise of the KL divergence to the source is predicted for every matrix and every way of
    storing it from the Grams of its inputs and output gradients: bits of a backbone under GPTQ's
    error feedback (``predicted_cost``), and ranks and bits of a correction beside it or alone
    (``correction_costs``). One measurement per matrix corrects its prices (``PriceProbe``), and one
    allocation per budget does the rest. The Grams stay beside the
    plan, under its name with ``.grams.npz``: a run that was cut goes on from there, one for other
    budgets or formats finds them complete, and ``execute_plan`` needs them.

    Args:
        source: Folder, or Hub id, of a checkpoint that mlx-lm can run.
        file: JSON file to write.
        calibration: Text and amount.
        budgets: Plain numbers are bits on disk per entry of the matrices, scales and factors
            counted.
        format: What is to be written: ``"mixed"``, bits per matrix, which everything built on
            mlx-lm loads; ``"corrected"``, bits and ranks, with a model file beside the weights;
            ``"adapter"``, bits and a stock adapter of one rank.
        choices: What to offer for each matrix; by default all that the format allows.
        include: Glob patterns of the matrices to take; by default every linear layer, the output
            head included, but no router. Embeddings are never taken.
        exclude: Glob patterns of matrices to leave alone.
        revision: Commit or branch, for a Hub id.
        force: Replace ``file`` where it exists.
        track: Wraps every long loop.

    Returns:
        What was written.

    Raises:
        FormatError: If a file is damaged, a weight is not finite, or ``file`` exists and is not to
            be replaced or is no plan.
        ValueError: If the text is too short, an activation is not finite, or a budget is below
            the least possible or above the size of the source.
        OSError: If a file cannot be read or written.
    """
    file = Path(file)
    _check_place(file, force)
    cache = file.with_suffix(".grams.npz")
    offered_choices = CHOICES[format] if choices is None else choices
    with open_checkpoint(source, revision=revision) as checkpoint:
        wanted = plannable(checkpoint, include, exclude)
        stated = [b if isinstance(b, Budget) else Budget("bits_per_weight", b) for b in budgets]
        _check_budgets(checkpoint, wanted, stated, offered_choices)
        file.parent.mkdir(parents=True, exist_ok=True)
        paths = [module_path(m.name) for m in wanted]
        with measure(checkpoint, calibration, paths, cache, track=track) as grams:
            run = [m for m in wanted if module_path(m.name) in grams]
            probe = PriceProbe.of(checkpoint, calibration)
            offered = price(checkpoint, run, grams, offered_choices, probe=probe, track=track)
        plan = LossPlan(
            source=source_identity(checkpoint),
            calibration=calibration.record() | {"damping": DAMPING},
            grams=(cache.name, sha256_file(cache)),
            matrices=offered,
            left=_left(checkpoint, offered),
            left_bytes=_left_bytes(checkpoint, offered),
            budgets=plan_bits(
                offered, stated, left_bytes=_left_bytes(checkpoint, offered), format=format
            ),
            format=format,
        )
        checkpoint.check_unchanged()
    write_plan(file, plan)
    return plan


def _check_place(file: Path, force: bool) -> None:
    """Refuse before the work what could not or must not be replaced after it."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise FormatError.about(file, "it is a link or a folder", "choose another file")
    if file.exists() and not force:
        raise FormatError.about(file, "it exists", "choose another file, or add --force")
    if file.exists() and not is_plan(file):
        raise FormatError.about(file, "it exists and is no plan", "choose another file")


def plannable(
    checkpoint: Checkpoint, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[Candidate]:
    """The linear layers of the model that a number of bits can be chosen for, routers left out.

    Args:
        checkpoint: The open source.
        include: Glob patterns, see `plan_checkpoint`.
        exclude: Glob patterns.

    Raises:
        ValueError: If there are none.
    """
    names = compressible(checkpoint.tensors, include=include or ("*",), exclude=exclude)
    linears = linear_paths(checkpoint.config)
    found = []
    for name in names:
        path = module_path(name)
        is_router = not include and path.rpartition(".")[2] in ROUTERS
        if path in linears and not is_router and max(checkpoint.shape(name)) <= WIDEST:
            found.append(candidate(checkpoint, name))
    kept = [m for m in found if m is not None]
    if not kept:
        raise ValueError("no linear layer is left to quantise; name some with --include")
    return kept


def _check_budgets(
    checkpoint: Checkpoint,
    candidates: Sequence[Candidate],
    budgets: Sequence[Budget],
    choices: Choices,
) -> None:
    """Refuse before the work what `plan_bits` would refuse after it."""
    totals = totals_of(candidates, _left_bytes(checkpoint, candidates))
    least = sum(least_bytes(m, choices) for m in candidates)
    for budget in budgets:
        check_budget(budget, least, totals)


def _left_bytes(checkpoint: Checkpoint, planned: Sequence[Candidate]) -> int:
    everything = sum(t.nbytes for t in checkpoint.tensors.values())
    return everything - sum(m.source_bytes for m in planned)


def _left(checkpoint: Checkpoint, offered: Sequence[Offered]) -> tuple[str, ...]:
    names = {m.name for m in offered}
    weights = (t for t in checkpoint.tensors.values() if t.name.endswith(".weight"))
    return tuple(t.name for t in weights if len(t.shape) > 1 and t.name not in names)
