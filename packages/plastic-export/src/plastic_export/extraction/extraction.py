"""A LoRA from two checkpoints: the leading components of what one has learnt beyond the other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core import Certificate, certify
from plastic_core.files import FormatError, export_safetensors, write_json
from plastic_runtime import Track, untracked

from plastic_export.adapters.adapter import Adapter, LoraPair
from plastic_export.adapters.base_name import BaseName, name_of_base
from plastic_export.adapters.writing import adapter_files
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import chosen_names, module_path
from plastic_export.extraction.difference import LayerDifference, difference_of
from plastic_export.extraction.gain import WINDOWS, Gain, measure_gain, reading_of
from plastic_export.extraction.grams import norms_of
from plastic_export.extraction.pair import Pair
from plastic_export.extraction.ranks import FormRanks, RankChooser, factor_type
from plastic_export.extraction.rest import LeftOut, Rest, rest_of
from plastic_export.extraction.survey import Survey
from plastic_export.folder.adapter_files import EXTRACT_FILE, FILE, FOLDER, PEFT_FILE, PEFT_FOLDER
from plastic_export.folder.output import OutputFolder
from plastic_export.reshaping.rank_choice import RankGoal

BESIDE = "beside.safetensors"


@dataclass(frozen=True)
class ExtractedForm:
    """One of the adapters that were written.

    Attributes:
        folder: Where it is.
        nbytes: Bytes of its file of tensors.
        ranks: Rank of every layer that it has, by path.
        energy: Share of the squares of all components that it holds.

    Examples:
        >>> made = extract("SRC", "TUNED", "FORMS", RankGoal(rank=1), check=False)
        >>> print(made.peft.folder, sorted(set(made.peft.ranks.values())))
        FORMS/peft [1]
    """

    folder: Path
    nbytes: int
    ranks: Mapping[str, int]
    energy: float


@dataclass(frozen=True)
class Extracted:
    """What came of an extraction.

    Attributes:
        out: The folder.
        adapter: Adapter of one rank, for mlx-lm's ``--adapter-path``.
        peft: Adapter in the form of PEFT, every layer with a rank of its own.
        changes: What was learnt in every matrix.
        certificates: Relative errors of the factors in ``adapter`` as they are stored, by path.
        left: What changed and is in no adapter.
        beside: File with those of ``left`` that are kept; None where there are none.
        gain: The losses on a text; None where they were not measured.
        note: What is to be known about the name of the base; empty where there is nothing.

    Examples:
        >>> result = extract("SRC", "TUNED", "EXTRACTED", RankGoal(rank=2), check=False)
        >>> max(result.peft.ranks.values()), result.adapter.energy > 0.9
        (2, True)
    """

    out: Path
    adapter: ExtractedForm
    peft: ExtractedForm
    changes: Sequence[LayerDifference]
    certificates: Mapping[str, Certificate]
    left: Sequence[LeftOut]
    beside: Path | None
    gain: Gain | None
    note: str


def extract(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    goal: RankGoal | None = None,
    *,
    calibration: Calibration | None = None,
    text: Calibration | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    check: bool = True,
    memory: int | None = None,
    seed: int = 0,
    track: Track = untracked,
) -> Extracted:
    r"""Write the adapter that takes ``base`` nearest to ``tuned``, at a rank per layer.

    For every matrix the leading components of the difference :math:`D = W_t - W_b` are kept, the
    best approximation of their number in the Frobenius norm or, with a calibration, in that of
    :math:`C^{1/2} D R^{1/2}`, whose square is twice the divergence that leaving a component out is
    predicted to cost. One budget holds for all layers: what is worth most per byte comes first.
    Components that the rounding of the stored weights alone explains are never kept, so that a
    merged adapter comes back with its own rank.

    Two matrices are in memory at a time, beside what their factorisation takes. Each is read twice:
    for its leading components, which wait on the disk until the ranks of all are chosen, and for
    the certificate of those that are stored.

    Args:
        base: Folder or Hub id; dense or quantised, of any floating type.
        tuned: Folder or Hub id of what was made of it; may be stored otherwise.
        out: Folder to write; must not exist, or be empty.
        goal: How much to keep; None for all that stands out. A number of bytes holds for the file
            of either adapter, and each has the ranks that are best for it: mlx-lm's form has one
            rank for all layers. An energy is that of the whole difference, or all that stands out
            where rounding hides what is missing for it.
        calibration: Text that decides which directions count; run through ``base``.
        text: Text on which the losses are measured; by default the shipped one, 24 windows.
        include: Glob patterns of the matrices to take; by default every linear layer of mlx-lm's
            model but the routers of experts.
        exclude: Glob patterns of matrices to leave.
        check: Whether the losses of base, adapter and tuned are measured before ``out`` is there.
        memory: Bytes of memory that the measurement may take; by default what the machine has.
        seed: Decides all that is random.
        track: Wraps every long loop, to show progress.

    Raises:
        FormatError: If the checkpoints cannot be subtracted (the tensors and their shapes, or the
            tokens, are named), are the same, or hold what is not finite.
        ValueError: If the budget is below one component, or a pattern matches nothing.
        BusyError: If another process is writing ``out``.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If the system refuses.

    Examples:
        >>> result = extract("SRC", "TUNED", "NEW", RankGoal(max_bytes=20_000), check=False)
        >>> result.adapter.nbytes <= 20_000 and result.peft.nbytes <= 20_000
        True
    """
    with (
        open_checkpoint(base) as before,
        open_checkpoint(tuned) as after,
        OutputFolder(out, source=before.folder) as folder,
        tempfile.TemporaryDirectory() as parts,
    ):
        pair = Pair.of(before, after)
        names = _chosen(pair, include, exclude)
        reading = None
        if check:
            judged = text or Calibration(windows=WINDOWS)
            reading = reading_of(before, after, judged, memory=memory, track=track)
        paths = [module_path(name) for name in names]
        chooser = RankChooser(pair, names, goal)
        with norms_of(before, calibration, paths, Path(parts), track) as norms:
            survey = Survey(pair, norms, Path(parts), seed)
            survey.read(names, chooser, track)
        changes = [survey.changes[name] for name in names]
        rest = rest_of(pair, [name for name in pair.layers if name not in names])
        _check_differ(pair, changes, rest)
        ranks = chooser(changes)
        made = _stored(pair, survey, ranks, seed, track)
        named = name_of_base(before)
        forms = _written(folder, made, ranks, changes, named)
        if rest.tensors:
            export_safetensors(folder / BESIDE, rest.tensors, metadata={"format": "mlx"})
        gain = None
        if reading is not None:
            gain = measure_gain(reading, before, after, forms[0].folder)
        record = _record(before, after, goal, calibration, forms, made, changes, rest, gain)
        write_json(folder / EXTRACT_FILE, record)
        before.check_unchanged()
        after.check_unchanged()
    place = Path(out)
    adapter, peft = (_moved(form, place) for form in forms)
    return Extracted(
        place,
        adapter,
        peft,
        changes,
        made.certificates,
        rest.left,
        place / BESIDE if rest.tensors else None,
        gain,
        named.note,
    )


@dataclass(frozen=True)
class _Made:
    """The factors of every layer at its highest rank, and their errors in mlx-lm's form."""

    pairs: Mapping[str, LoraPair]
    certificates: Mapping[str, Certificate]


def _chosen(pair: Pair, include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return the matrices that an adapter may update."""
    linears = [n for n, layer in pair.layers.items() if layer.kind == "linear"]
    default = [name for name in linears if not pair.layers[name].is_router]
    return chosen_names(linears, default=default, include=include, exclude=exclude)


def _check_differ(pair: Pair, changes: Sequence[LayerDifference], rest: Rest) -> None:
    """Refuse what no adapter can be made of."""
    tuned = pair.tuned.checkpoint
    if not any(change.total for change in changes):
        what = "the same weights" if not rest.left else "the same matrices"
        reason = f"it holds {what} as {pair.base.checkpoint.name}"
        if rest.left:
            reason += f"; only {', '.join(left.name for left in rest.left[:3])} changed"
        raise FormatError.about(tuned.folder, reason, "name the checkpoint that was trained")
    if not any(len(change.values) for change in changes):
        reason = f"it differs from {pair.base.checkpoint.name} by rounding alone"
        raise FormatError.about(tuned.folder, reason, "name the checkpoint that was trained")


def _stored(pair: Pair, survey: Survey, ranks: FormRanks, seed: int, track: Track) -> _Made:
    """Round the factors of every layer that has a component to their type, and certify them."""
    pairs, certificates = dict[str, LoraPair](), dict[str, Certificate]()
    highest = {name: rank for name, rank in ranks.highest.items() if rank}
    for name in track(list(highest), "certifying"):
        path, dtype = module_path(name), factor_type(pair, name)
        B, A = survey.components(name, highest[name])
        stored = LoraPair(mx.array(A).astype(dtype), mx.array(B).astype(dtype))
        rank, D = ranks.adapter[name], difference_of(pair, name)
        certificates[path] = certify(D, stored.B[:, :rank], stored.A[:rank], key=seed)
        pairs[path] = stored
    return _Made(pairs, certificates)


def _written(
    folder: Path, made: _Made, ranks: FormRanks, changes: Sequence[LayerDifference], base: BaseName
) -> tuple[ExtractedForm, ExtractedForm]:
    """Write both forms."""
    total = sum(change.total for change in changes)

    def written(form: Any, place: str, file: str, chosen: Mapping[str, int]) -> ExtractedForm:
        of = {module_path(name): rank for name, rank in chosen.items() if rank}
        layers = {path: _leading(made.pairs[path], rank) for path, rank in of.items()}
        adapter = Adapter(layers, base=base.name, revision=base.revision)
        adapter_files(adapter, form).write(folder / place)
        kept = sum(change.energy(chosen[change.name]) for change in changes)
        nbytes = (folder / place / file).stat().st_size
        return ExtractedForm(folder / place, nbytes, of, kept / total)

    return (
        written("mlx", FOLDER, FILE, ranks.adapter),
        written("peft", PEFT_FOLDER, PEFT_FILE, ranks.peft),
    )


def _leading(pair: LoraPair, rank: int) -> LoraPair:
    return LoraPair(pair.A[:rank], pair.B[:, :rank])


def _moved(form: ExtractedForm, out: Path) -> ExtractedForm:
    return ExtractedForm(out / form.folder.name, form.nbytes, form.ranks, form.energy)


def _record(
    base: Checkpoint,
    tuned: Checkpoint,
    goal: RankGoal | None,
    calibration: Calibration | None,
    forms: Sequence[ExtractedForm],
    made: _Made,
    changes: Sequence[LayerDifference],
    rest: Rest,
    gain: Gain | None,
) -> dict[str, Any]:
    """Return what the folder says of itself."""
    return {
        "version": 1,
        "base": {"name": base.name, "revision": base.revision},
        "tuned": {"name": tuned.name, "revision": tuned.revision},
        "goal": asdict(goal) if goal else None,
        "calibration": calibration.record() if calibration else None,
        "adapters": [
            {
                "folder": form.folder.name,
                "bytes": form.nbytes,
                "energy": form.energy,
                "ranks": dict(form.ranks),
            }
            for form in forms
        ],
        "layers": {
            module_path(change.name): {
                "shape": change.shape,
                "relative_change": change.relative,
                "components": len(change.values),
                **_errors(made.certificates.get(module_path(change.name))),
            }
            for change in changes
        },
        "left": [asdict(left) for left in rest.left],
        "gain": asdict(gain) if gain else None,
    }


def _errors(certificate: Certificate | None) -> dict[str, float]:
    return {} if certificate is None else dict(certificate._asdict())
