"""Compress a checkpoint: survey its matrices, plan their ranks, write what is awake and asleep."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from plastic_core.files import copy_file, write_json
from plastic_runtime import Track, untracked
from plastic_select.rules import NEED_GRAM, as_rule

from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.packing import without_quantization
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import compressible, module_path
from plastic_export.compression.ranks import MatrixPlan, Plan, check_keep, plan_ranks
from plastic_export.compression.spectra import measured_grams, read_spectra
from plastic_export.compression.write_ranks import Format, execute
from plastic_export.exact.exactness import EXACT, write_exact
from plastic_export.folder.manifest import MatrixRecord, read_manifest, run_identity, write_manifest
from plastic_export.folder.output import OutputFolder
from plastic_export.model.load import MODEL_FILE
from plastic_export.model.stock import linear_paths


@dataclass(frozen=True)
class Compressed:
    """What ``compress`` did.

    Attributes:
        out: The folder that was written.
        plan: The plan it executed.
        matrices: One record per matrix: rank, bytes, certificate.
        source_bytes: Bytes of the weight files of the source.
        model_bytes: Bytes of the model files written.
        sleep_bytes: Bytes of ``sleep.safetensors``; 0 where nothing sleeps.
        exact_bytes: Bytes of ``exact.safetensors``; 0 without ``exact``.
    """

    out: Path
    plan: Plan
    matrices: tuple[MatrixRecord, ...]
    source_bytes: int
    model_bytes: int
    sleep_bytes: int
    exact_bytes: int = 0


def compress(
    source: str | Path,
    out: str | Path,
    *,
    keep: float,
    strategy: str | None = None,
    format: Format = "factored",
    calibration: Calibration | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    revision: str | None = None,
    force: bool = False,
    exact: bool = False,
    track: Track = untracked,
) -> Compressed:
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
        calibration: Text and amount; for the strategies that need one,
            ``plastic_select.rules.NEED_GRAM``; refused by the others.
        include: Glob patterns of the matrices to take; default: see ``compressible``.
        exclude: Glob patterns of matrices to leave alone.
        revision: Commit or branch, for a Hub id.
        force: Replace ``out`` where it is an earlier output of this function, and what a run with
            other arguments left.
        exact: Also write ``exact.safetensors``, so that ``restore`` gives back every bit.
        track: Wraps every long loop, to show progress.

    Raises:
        FormatError: If a file of the source is damaged, or a weight is not finite; if the run that
            was cut had other options, versions or another source (the difference is named).
        ValueError: If an argument is out of range, or the strategy lacks its calibration.
        BusyError: If another process is writing ``out``.
        OSError: If reading or writing fails. What is finished is kept for the next run.
    """
    check_keep(keep)
    strategy = strategy or ("activation" if calibration else "stable")
    _check_calibration(strategy, calibration)
    with open_checkpoint(source, revision=revision) as checkpoint:
        names = compressible(checkpoint.tensors, include=include, exclude=exclude)
        if format == "factored":
            names = _factorable(checkpoint, names, required=bool(include))
        options = {
            "keep": keep,
            "strategy": strategy,
            "format": format,
            "include": list(include),
            "exclude": list(exclude),
            "calibration": calibration.record() if calibration else None,
            "exact": exact,
        }
        output = OutputFolder(out, force=force, source=checkpoint.folder, resume=True)
        check_room(checkpoint, output, exact=exact)
        with output as folder, no_cache():
            identity = run_identity(checkpoint, options)
            if output.begin(identity):
                journal = output.started
                grams = measured_grams(checkpoint, calibration, journal, track)
                surveyed = read_spectra(checkpoint, names, grams, journal, track)
                plan = plan_ranks(surveyed, keep, strategy)
                records, digests = execute(
                    checkpoint, plan, grams, format, folder, journal, track=track
                )
                _write_sides(checkpoint, plan, format, folder)
                if exact:
                    digests |= write_exact(checkpoint, folder, track=track)
                checkpoint.check_unchanged()
                write_manifest(folder, identity, records, digests)
        return _compressed(output.path, Path(out), keep, strategy, checkpoint)


def _compressed(
    folder: Path, out: Path, keep: float, strategy: str, checkpoint: Checkpoint
) -> Compressed:
    """What was done, from the manifest of the finished folder."""
    records = tuple(read_manifest(folder).matrices.values())
    return Compressed(
        out=out,
        plan=Plan(keep, strategy, tuple(MatrixPlan.of(r) for r in records)),
        matrices=records,
        source_bytes=sum(p.stat().st_size for p in checkpoint.weight_files),
        model_bytes=sum(p.stat().st_size for p in folder.glob("model*.safetensors")),
        sleep_bytes=sum(p.stat().st_size for p in folder.glob("sleep.safetensors")),
        exact_bytes=sum(p.stat().st_size for p in folder.glob(EXACT)),
    )


@contextmanager
def no_cache() -> Iterator[None]:
    """Let MLX give back the memory of every array at once: matrices differ, nothing is reused."""
    limit = mx.set_cache_limit(0)
    try:
        yield
    finally:
        mx.set_cache_limit(limit)


def _check_calibration(strategy: str, calibration: Calibration | None) -> None:
    needs_gram = as_rule(strategy).needs_gram
    if needs_gram and calibration is None:
        raise ValueError(
            f"strategy {strategy!r} needs a calibration text; name one with --calibration FILE"
        )
    if not needs_gram and calibration is not None:
        raise ValueError(
            f"strategy {strategy!r} does not use a calibration text; "
            f"drop --calibration or take --strategy {' or '.join(NEED_GRAM)}"
        )


def check_room(checkpoint: Checkpoint, output: OutputFolder, *, exact: bool = False) -> None:
    """Refuse before the work: awake and asleep together may take three times the source.

    What ``exact`` keeps may take the source once more, and as much again while it is written.
    """
    parent = next(p for p in output.path.parents if p.exists())
    needed = (5 if exact else 3) * sum(p.stat().st_size for p in checkpoint.weight_files)
    needed += 2**17 + 2**12 * len(checkpoint.tensors)  # manifest, journal, configuration
    needed += sum(p.stat().st_size for p in checkpoint.side_files()) - output.left_bytes()
    free = shutil.disk_usage(parent).free
    if free < needed:
        reason = f"{needed} bytes may be needed and {free} are free; choose another disk"
        raise OSError(errno.ENOSPC, reason, str(output.path))


def _factorable(checkpoint: Checkpoint, names: Sequence[str], *, required: bool) -> list[str]:
    """Those that are an ``nn.Linear`` of the mlx-lm model, as the factored format requires."""
    linears = linear_paths(checkpoint.config)
    kept = [name for name in names if module_path(name) in linears]
    lost = [name for name in names if module_path(name) not in linears]
    if lost and (required or not kept):
        raise ValueError(
            f"{lost[0]!r} is no nn.Linear of mlx-lm's {checkpoint.config.get('model_type')!r} "
            "model, so it cannot be stored factored; exclude it, or take --format dense"
        )
    return kept


def _write_sides(checkpoint: Checkpoint, plan: Plan, format: Format, folder: Path) -> None:
    """The configuration, the model file, and the tokenizer's files unchanged."""
    factored = {module_path(p.name): p.rank for p in plan.matrices if p.choice == "factored"}
    config = without_quantization(checkpoint.config, factored)
    if format == "factored" and factored:
        config |= {"model_file": MODEL_FILE.name, "plastic": {"version": 1, "ranks": factored}}
        copy_file(MODEL_FILE, folder / MODEL_FILE.name)
    write_json(folder / "config.json", config)
    checkpoint.copy_side_files(folder)
