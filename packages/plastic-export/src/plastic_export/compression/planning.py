"""Plan a checkpoint: calibrate once, price every matrix, spend every budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plastic_core.files import FormatError, TensorSpec, sha256_file
from plastic_runtime import GramFile, Track, untracked
from plastic_runtime.measure import LONGEST_DENSE_SIDE

from plastic_export.calibration.loss_grams import measure_loss_grams
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import chosen_names, is_matrix, is_weight, module_path
from plastic_export.format.header_bytes import fixed_bytes, overhead_of
from plastic_export.model.layers import layers_of, stored_apart
from plastic_export.plan.budgets import Budget, check_budget
from plastic_export.plan.gram_uses import DAMPING, is_measured
from plastic_export.plan.offers import Candidate, Format, Offered, plan_bits, totals_of
from plastic_export.plan.plan_file import LossPlan, is_plan, source_identity, write_plan
from plastic_export.plan.pricing import CHOICES, Choices, candidate, price, smallest_offers
from plastic_export.plan.probe import PriceProbe


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
    embeddings: bool = True,
    widest: int = LONGEST_DENSE_SIDE,
    revision: str | None = None,
    force: bool = False,
    track: Track = untracked,
) -> LossPlan:
    """Choose how to store every linear layer and embedding by the predicted effect on the loss.

    The rise of the KL divergence to the source is predicted for every matrix and every way of
    storing it from the Grams of its inputs and output gradients: bits of a backbone under GPTQ's
    error feedback (``predicted_cost``), and ranks and bits of a correction beside it or alone
    (``correction_costs``). Embeddings, whose inputs are tokens, and stacks of experts, of one width
    each, are offered bits alone; of tied weights the costs of both uses are added. One measurement
    per matrix corrects its prices (``PriceProbe``), and one allocation per budget does the rest.
    The Grams stay beside the plan, under its name with ``.grams.npz``: a run that was cut goes on
    from there, one for other budgets or formats finds them complete, and ``execute_plan`` needs
    them.

    Args:
        source: Folder, or Hub id, of a checkpoint that mlx-lm can run.
        file: JSON file to write.
        calibration: Text and amount.
        budgets: Plain numbers are bits on disk per entry of the planned matrices, embeddings and
            experts among them, scales and factors counted.
        format: What is to be written: ``"mixed"``, bits per matrix, which everything built on
            mlx-lm loads; ``"corrected"``, bits and ranks, with a model file beside the weights;
            ``"adapter"``, bits and a stock adapter of one rank.
        choices: What to offer for each matrix; by default all that the format allows.
        include: Glob patterns of the matrices to take; by default every linear layer, the output
            head included, every embedding and stack of experts, but no router.
        exclude: Glob patterns of matrices to leave alone.
        embeddings: Whether embeddings are among them.
        widest: The longest side of a dense Gram; along longer ones blocks are measured (see
            ``measure_grams``).
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
        wanted = plannable(checkpoint, include, exclude, embeddings=embeddings)
        stated = [b if isinstance(b, Budget) else Budget("bits_per_weight", b) for b in budgets]
        _check_budgets(checkpoint, wanted, stated, offered_choices, format)
        file.parent.mkdir(parents=True, exist_ok=True)
        paths = [module_path(m.name) for m in wanted]
        with measure_loss_grams(
            checkpoint, calibration, paths, cache, widest=widest, track=track
        ) as grams:
            run = [m for m in wanted if is_measured(m, grams)]
            unreached = unreached_experts(run, grams)
            probe = PriceProbe.of(checkpoint, calibration)
            offered = price(checkpoint, run, grams, offered_choices, probe=probe, track=track)
        plan = LossPlan(
            source=source_identity(checkpoint),
            calibration=calibration.record()
            | {"damping": DAMPING, "widest": widest, "unreached_experts": unreached},
            grams=(cache.name, sha256_file(cache)),
            matrices=offered,
            left=_left(checkpoint, offered),
            left_bytes=_left_bytes(checkpoint, offered),
            budgets=plan_bits(
                offered,
                stated,
                left_bytes=_left_bytes(checkpoint, offered) + _left_headers(checkpoint, offered),
                format=format,
                overhead=overhead_of(format, _nbytes(checkpoint)),
            ),
            format=format,
        )
        checkpoint.check_unchanged()
    write_plan(file, plan)
    return plan


def _check_place(file: Path, force: bool) -> None:
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


def plannable(
    checkpoint: Checkpoint,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    embeddings: bool = True,
) -> list[Candidate]:
    """The weights of the model that a number of bits can be chosen for, routers left out.

    Args:
        checkpoint: The open source.
        include: Glob patterns, see `plan_checkpoint`.
        exclude: Glob patterns.
        embeddings: Whether embeddings are among them.

    Raises:
        ValueError: If there are none.
    """
    layers = layers_of(checkpoint)
    apart = stored_apart(layers)
    places = {name: i for i, name in enumerate(checkpoint.tensors)}
    stored = [m for m in layers.values() if is_weight(m.tensors[0], checkpoint.tensors)]
    stored.sort(key=lambda m: min(places[name] for name in m.tensors))
    matrices = [n for n in checkpoint.tensors if is_matrix(n, checkpoint.tensors)]
    known = dict.fromkeys([*(n for n in matrices if n not in apart), *(m.name for m in stored)])
    chosen = {*chosen_names([*known], include=include or ("*",), exclude=exclude)}
    found = []
    for layer in stored:
        is_router = layer.is_router and not include
        is_left = is_router or (layer.kind == "embedding" and not embeddings)
        if layer.name in chosen and not is_left:
            found.append(candidate(checkpoint, layer))
    kept = [m for m in found if m is not None]
    if not kept:
        raise ValueError("no layer is left to quantise; name some with --include")
    return kept


def unreached_experts(planned: Sequence[Candidate], grams: GramFile) -> int:
    """How many experts no token of the text reached: they are given the Grams of the others."""
    paths = (f"{module_path(m.name)}.{e}" for m in planned for e in range(m.experts))
    return sum(path in grams and grams.count(path) == 0 for path in paths)


def _check_budgets(
    checkpoint: Checkpoint,
    candidates: Sequence[Candidate],
    budgets: Sequence[Budget],
    choices: Choices,
    format: Format,
) -> None:
    """Refuse before the work what `plan_bits` would refuse after it."""
    overhead, left = overhead_of(format, _nbytes(checkpoint)), _left_bytes(checkpoint, candidates)
    for budget in budgets:
        counted = budget.counts_headers
        extra = overhead if counted else lambda m, offer: 0
        fixed = _left_headers(checkpoint, candidates) if counted else 0
        totals = totals_of(candidates, left + fixed, extra)
        least = [
            min(o.nbytes + extra(m, o) for o in smallest_offers(m, choices)) for m in candidates
        ]
        check_budget(budget, sum(least), totals)


def _left_headers(checkpoint: Checkpoint, planned: Sequence[Candidate]) -> int:
    """What all but the planned matrices takes in the headers of the files."""
    names = {m.name for m in planned}
    left = [t for t in checkpoint.tensors.values() if t.name not in names]
    specs = [TensorSpec(t.name, t.dtype, t.shape) for t in left]
    return fixed_bytes(specs, _nbytes(checkpoint))


def _nbytes(checkpoint: Checkpoint) -> int:
    return sum(t.nbytes for t in checkpoint.tensors.values())


def _left_bytes(checkpoint: Checkpoint, planned: Sequence[Candidate]) -> int:
    return _nbytes(checkpoint) - sum(m.source_bytes for m in planned)


def _left(checkpoint: Checkpoint, offered: Sequence[Offered]) -> tuple[str, ...]:
    apart = stored_apart(layers_of(checkpoint))
    names = {m.name for m in offered}
    names |= {tensor for tensor, stack in apart.items() if stack.name in names}
    weights = (t for t in checkpoint.tensors.values() if t.name.endswith(".weight"))
    return tuple(t.name for t in weights if len(t.shape) > 1 and t.name not in names)
