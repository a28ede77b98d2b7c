"""Compress a checkpoint by rank: its spectra are read, ranks chosen, the rest put to sleep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, Journal
from plastic_core.rounding import UNPACKED
from plastic_runtime import Gram, LossGrams, Track, untracked
from plastic_runtime.dialling import (
    MatrixPlan,
    MatrixRecord,
    Plan,
    check_keep,
    encoded_spectrum,
    plan_ranks,
    read_manifest,
)
from plastic_select.rules import NEED_GRAM, as_rule

from plastic_export.calibration.input_grams import Grams
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import (
    chosen_names,
    compressible,
    is_inside,
    is_matrix,
    matches,
    module_path,
)
from plastic_export.compression.foreseen import foresee_writing
from plastic_export.compression.spectra import measured_grams, read_spectra
from plastic_export.compression.writer import Compressed, Recipe, compressed, write_compressed
from plastic_export.estimate.limits import Say
from plastic_export.evaluation.output_check import OutputChecker
from plastic_export.format.arranging import arranged
from plastic_export.format.layout import Contents
from plastic_export.format.protocol import Format
from plastic_export.format.table import RANK_FORMATS, format_named
from plastic_export.model.stock import stock_model
from plastic_export.plan.offers import Candidate, Offer
from plastic_export.source.source import Source
from plastic_export.source.trace import trace_loading


def compress(
    source: str | Path,
    out: str | Path,
    *,
    keep: float,
    strategy: str | None = None,
    format: str = "factored",
    calibration: Calibration | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    revision: str | None = None,
    force: bool = False,
    exact: bool = False,
    check: bool = True,
    memory: int | None = None,
    say: Say | None = None,
    track: Track = untracked,
) -> Compressed[Plan]:
    """Write a compressed copy of a checkpoint that stock mlx-lm loads.

    Every chosen matrix becomes ``W ~ U_r (U_r^T W)`` with U orthonormal: the best approximation
    of its rank, of W itself or, under a calibration text, of the outputs ``W x`` (Swift-SVD,
    arXiv 2604.01609). The components left out go to ``sleep.safetensors``, the most important
    first; ``restore`` puts them back. All other tensors are copied bit for bit.

    One matrix is in memory at a time, besides the Grams of a calibration. Nothing appears at
    ``out`` before everything is written and synced. Cost: two symmetric eigendecompositions of
    size ``min(out, in)`` per matrix, the first for the values alone.

    What a run finished before it was killed, interrupted or refused by the system waits in
    ``.<out>.partial``. The next one with the same arguments goes on with it, to the same bytes; it
    does nothing where an earlier one had finished. With other arguments it is refused, unless
    ``force`` is set: then it begins anew.

    Args:
        source: Folder, or Hub id, of a Hugging Face or mlx-community checkpoint.
        out: Folder to write; must not exist, or be empty.
        keep: Fraction of the bytes of the matrices that stays awake, in (0, 1].
        strategy: One of ``plastic_select.STRATEGIES``; by default ``"activation"`` with a
            calibration and ``"stable"``, the best of the others at equal bytes, without.
        format: ``"factored"``: two thin matrices and a model file beside them; smaller, loads
            with ``--trust-remote-code``. ``"dense"``: their product, as large as the source,
            loads everywhere.
        calibration: Text and amount, for the strategies that need one,
            ``plastic_select.rules.NEED_GRAM``, which without it take the shipped texts; refused by
            the others.
        include: Glob patterns of the matrices to take; default: see ``compressible``.
        exclude: Glob patterns of matrices to leave alone.
        revision: Commit or branch, for a Hub id.
        force: Replace ``out`` where it is an earlier output of this function, and what a run with
            other arguments left.
        exact: Also write ``exact.safetensors``, so that ``restore`` gives back every bit.
        check: Before the output is published, run one window of text (of ``calibration``, if there
            is one) through it as mlx-lm loads it, block by block, and compare it with the source:
            see `OutputCheck`. Needs mlx-lm. An output that fails is not published; what was
            written waits, and the next run checks it again.
        memory: Bytes of memory that it may take; by default what the machine has.
        say: Is told in a line what the work will take, unless that is next to nothing.
        track: Wraps every long loop, to show progress.

    Raises:
        FormatError: If a file of the source is damaged, or a weight is not finite; if the run that
            was cut had other options, versions or another source (the difference is named).
        FailedCheckError: If the output cannot be run, or predicts no better than a model that
            knows nothing.
        ValueError: If an argument is out of range, the strategy uses no calibration and has one,
            or the work does not fit into memory.
        BusyError: If another process is writing ``out``.
        OSError: If reading or writing fails. What is finished is kept for the next run.

    Examples:
        >>> result = compress("SRC", "OUT", keep=0.5)
        >>> result.plan.strategy, result.plan.kept <= 0.5, verify("OUT")
        ('stable', True, [])
    """
    check_keep(keep)
    strategy = strategy or ("activation" if calibration else "stable")
    calibration = _calibration(strategy, calibration)
    target = format_named(format, RANK_FORMATS)
    options = {
        "keep": keep,
        "strategy": strategy,
        "format": format,
        "include": list(include),
        "exclude": list(exclude),
        "calibration": calibration.record() if calibration else None,
        "exact": exact,
    }
    with open_checkpoint(source, revision=revision) as checkpoint:
        # Without a model of its own, a format holds any plain matrix, whatever becomes of it.
        loads = target.linears_only or checkpoint.holds_codes
        traced = Source.of(checkpoint) if loads else Source.as_it_is(checkpoint)
        names = _chosen_names(traced, include, exclude, loads=loads)

        foresee_writing(
            checkpoint,
            _candidates(traced, names),
            nbytes=sum(info.nbytes for info in checkpoint.tensors.values()),
            checked=check,
            ranks=True,
            memory=memory,
            say=say,
        )

        def decide(journal: Journal) -> Recipe:
            grams = measured_grams(checkpoint, calibration, journal, track)
            surveyed = read_spectra(traced, names, grams, journal, track)
            spectra = {m.name: m.spectrum for m in surveyed}
            return _recipe(traced, plan_ranks(surveyed, keep, strategy), target, grams, spectra)

        checker = OutputChecker(checkpoint, calibration=calibration) if check else None
        done, checked = write_compressed(
            checkpoint, out, options, decide, checker=checker, force=force, track=track
        )
        matrices = map(_carried_out, read_manifest(done).matrices.values())
        plan = Plan(keep, strategy, tuple(matrices))
        return compressed(done, out, plan, checkpoint, checked)


def _recipe(
    source: Source,
    plan: Plan,
    format: Format,
    grams: Grams,
    spectra: Mapping[str, NDArray[np.float64]],
) -> Recipe:
    """Return the recipe of a plan of ranks: offers without a backbone, and what sleeps."""
    chosen = {p.name: _offer(p) for p in plan.matrices}
    contents = Contents.of(format, map(_candidate, plan.matrices), chosen)

    def of(m: Candidate) -> Iterator[LossGrams | None]:
        gram = grams.get(module_path(m.name))
        # As if the gradients of all outputs were alike and independent: C is the identity.
        same = Gram(np.ones((m.shape[0], 1, 1)), 0)
        yield None if gram is None else LossGrams(Gram(gram, 0), same)

    notes = {
        p.name: {
            "retained_energy": p.retained_energy,
            "why": p.why,
            "spectrum": encoded_spectrum(spectra[p.name]) if format.dials and p.parked else "",
        }
        for p in plan.matrices
    }
    return Recipe(source, arranged(source, contents), of, notes)


def _candidates(source: Source, names: Sequence[str]) -> list[Candidate]:
    """Return what is known of the matrices before their spectra are."""
    layers = [source.layers[name] for name in names]
    return [Candidate(m.name, m.shape, m.dtype, 0, m.source_bytes) for m in layers]


def _candidate(p: MatrixPlan) -> Candidate:
    return Candidate(p.name, p.shape, p.dtype, 0, p.source_bytes)


def _offer(p: MatrixPlan) -> Offer:
    """The factors of a matrix, or the matrix as it is; their effect on the loss is not known."""
    if p.choice == "dense":
        return Offer(None, p.source_bytes, 0.0)
    return Offer(None, p.awake_bytes, 0.0, p.rank, UNPACKED, parked=p.parked)


def _kept_as_codes(config: dict[str, Any]) -> set[str]:
    """Return the layers that mlx-lm's model has as codes whatever is stored; none can be dense."""
    try:
        model: Any = stock_model(config).module
    except (FormatError, ModuleNotFoundError):  # what it is not known for, it has none of
        return set()
    return {path for path, m in model.named_modules() if hasattr(m, "bits") and "scales" in m}


def _dropped(checkpoint: Checkpoint) -> set[str]:
    """Return the tensors that mlx-lm drops on loading (towers, MTP): nothing shows their errors."""
    try:
        found = trace_loading(checkpoint.folder)
    except (FormatError, ModuleNotFoundError):  # what it cannot load, it drops nothing of
        return set()
    if not all(found.origins[f"{path}.weight"].tensors for path, _, _ in found.kinds):
        return set()  # some weights cannot be traced, so what is dropped cannot be told
    used = {name for origin in found.origins.values() for name in origin.tensors}
    return checkpoint.tensors.keys() - used


def _carried_out(record: MatrixRecord) -> MatrixPlan:
    """Return the plan that a record says was carried out."""
    same = {f.name: getattr(record, f.name) for f in fields(MatrixPlan) if hasattr(record, f.name)}
    if record.is_unchanged:
        return MatrixPlan(**{**same, "choice": "dense", "rank": min(record.shape)})
    return MatrixPlan(**same, choice="factored")


def _chosen_names(
    source: Source, include: Sequence[str], exclude: Sequence[str], *, loads: bool
) -> list[str]:
    """Return the matrices to compress, those of the model that mlx-lm loads if it is loaded."""
    if not loads:
        names = compressible(source.checkpoint.tensors, include=include, exclude=exclude)
        codes = _kept_as_codes(source.checkpoint.config) if names else set()
        dropped = set[str]() if include else _dropped(source.checkpoint)
        return [n for n in names if module_path(n) not in codes and n not in dropped]
    linears = [m.name for m in source.layers.values() if m.kind == "linear" and min(m.shape) > 1]
    _check_factorable(source, linears, include)
    default = [name for name in linears if is_inside(name)]
    return chosen_names(linears, default=default, include=include, exclude=exclude)


def _calibration(strategy: str, calibration: Calibration | None) -> Calibration | None:
    """Return what a strategy needs: the shipped texts where no other are given, or nothing."""
    needs_gram = as_rule(strategy).needs_gram
    if not needs_gram and calibration is not None:
        raise ValueError(
            f"strategy {strategy!r} does not use a calibration text; "
            f"drop --calibration or take --strategy {' or '.join(NEED_GRAM)}"
        )
    return calibration or (Calibration() if needs_gram else None)


def _check_factorable(source: Source, linears: Sequence[str], include: Sequence[str]) -> None:
    """Refuse matrices that are asked for and are no ``nn.Linear``, as the factored format needs."""
    made = {tensor for name in linears for tensor in source.layers[name].tensors}
    tensors, users = source.checkpoint.tensors, source.users()
    loaded = [name for name in tensors if is_matrix(name, tensors) and users[name]]
    wanted = [name for name in loaded if not linears or matches(name, include)]
    lost = [name for name in wanted if name not in made]
    if lost:
        model_type = source.checkpoint.config.get("model_type")
        raise ValueError(
            f"{lost[0]!r} is no nn.Linear of mlx-lm's {model_type!r} model, so it cannot be "
            "stored factored; exclude it, or take --format dense"
        )
