"""Carry out a plan: a checkpoint in mixed bits, with or without corrections of low rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core import Backbone, Certificate, Correction, certify
from plastic_core.files import FormatError, Journal, noting, sha256_file
from plastic_core.linalg import frobenius_norm
from plastic_runtime import GramFile, LossGrams, Track, untracked

from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.compression.by_rank import check_room, no_cache
from plastic_export.compression.write_ranks import METADATA, dense_certificate
from plastic_export.exact.exactness import EXACT, write_exact
from plastic_export.folder.adapter_files import FILE, FOLDER
from plastic_export.folder.manifest import (
    QuantisedRecord,
    read_manifest,
    run_identity,
    write_manifest,
)
from plastic_export.folder.output import OutputFolder
from plastic_export.folder.shards import Shards
from plastic_export.folder.steps import Steps
from plastic_export.format.adapter import adapter_shards, check_adapter, write_adapter_config
from plastic_export.format.config import write_config
from plastic_export.format.parts import Layout
from plastic_export.model.layers import Layer, layers_of
from plastic_export.plan.gram_uses import Uses, combined_grams, is_measured
from plastic_export.plan.offers import BitsPlan, Candidate, Format, Offered
from plastic_export.plan.plan_file import LossPlan, check_source, grams_file, read_plan
from plastic_export.plan.pricing import candidate, stored, weights_of
from plastic_export.process.in_worker import in_worker


@dataclass(frozen=True)
class Quantised:
    """What ``execute_plan`` did.

    Attributes:
        out: The folder that was written.
        format: Of the plan.
        plan: The budget of the plan that was executed.
        matrices: One record per matrix: bits, rank, bytes, errors.
        source_bytes: Bytes of the weight files of the source.
        model_bytes: Bytes of the model files written.
        adapter_bytes: Bytes of the adapter's tensors; 0 where there is none.
        exact_bytes: Bytes of ``exact.safetensors``; 0 without ``exact``.
    """

    out: Path
    format: Format
    plan: BitsPlan
    matrices: tuple[QuantisedRecord, ...]
    source_bytes: int
    model_bytes: int
    adapter_bytes: int
    exact_bytes: int = 0

    @property
    def needs_model_file(self) -> bool:
        """Whether mlx-lm asks for ``--trust-remote-code`` before it runs it."""
        return self.format == "corrected" and self.plan.rank > 0


def execute_plan(
    source: str | Path,
    out: str | Path,
    plan_file: str | Path,
    *,
    budget: float | str | None = None,
    revision: str | None = None,
    force: bool = False,
    exact: bool = False,
    track: Track = untracked,
) -> Quantised:
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
        revision: Commit or branch, for a Hub id.
        force: Replace ``out`` where it is an earlier output, and what a run with other arguments
            left; see `compress`.
        exact: Also write ``exact.safetensors``, so that ``restore`` gives back every bit.
        track: Wraps the loop over the tensors.

    Raises:
        FormatError: If the plan is damaged or of another source (the difference is named), its
            Grams are missing or others, a file of the source is damaged, or an adapter cannot
            hold the plan's corrections.
            Also if a run of other options, versions or another source was cut, unless ``force``.
        ValueError: If the plan does not hold the budget.
        BusyError: If another process is writing ``out``.
        OSError: If reading or writing fails. What is finished is kept for the next run.
    """
    file = Path(plan_file)
    whole = read_plan(file)
    plan = whole.budget(budget)
    if whole.format == "adapter":
        check_adapter(plan, file)
    with open_checkpoint(source, revision=revision) as checkpoint:
        check_source(whole, checkpoint, file)
        _check_matrices(whole, checkpoint, file)
        grams_path = grams_file(whole, file)
        layout = Layout.of(checkpoint, whole, plan)
        options = {
            "format": whole.format,
            "budget": plan.asked,
            "bits_per_weight": plan.budget,
            "plan_sha256": sha256_file(file),
            "calibration": dict(whole.calibration),
            "exact": exact,
        }
        output = OutputFolder(out, force=force, source=checkpoint.folder, resume=True)
        check_room(checkpoint, output, exact=exact)
        with output as folder, no_cache():
            identity = run_identity(checkpoint, options)
            if output.begin(identity):
                with GramFile(grams_path) as grams:
                    _check_measured(whole, grams, file)
                    records, digests = _write(
                        checkpoint, whole, layout, grams, folder, output.started, track
                    )
                _write_sides(checkpoint, plan, layout, folder)
                if exact:
                    digests |= write_exact(checkpoint, folder, track=track)
                checkpoint.check_unchanged()
                write_manifest(folder, identity, records, digests)
        done = output.path
        return Quantised(
            out=Path(out),
            format=whole.format,
            plan=plan,
            matrices=tuple(read_manifest(done).quantised.values()),
            source_bytes=sum(p.stat().st_size for p in checkpoint.weight_files),
            model_bytes=sum(p.stat().st_size for p in done.glob("model*.safetensors")),
            adapter_bytes=sum(p.stat().st_size for p in done.glob(f"{FOLDER}/{FILE}")),
            exact_bytes=sum(p.stat().st_size for p in done.glob(EXACT)),
        )


def _check_matrices(whole: LossPlan, checkpoint: Checkpoint, file: Path) -> None:
    """Refuse matrices that are not as the source has them."""
    layers = layers_of(checkpoint)
    for m in whole.matrices:
        there = candidate(checkpoint, layers[m.name]) if m.name in layers else None
        stated = {f.name: getattr(m, f.name) for f in fields(Candidate)}
        if there != Candidate(**stated):
            reason = f"{m.name!r} is not described as the source has it"
            remedy = "edit nothing but its bits and ranks, or plan again"
            raise FormatError.about(file, reason, remedy)


def _check_measured(whole: LossPlan, grams: GramFile, file: Path) -> None:
    for m in whole.matrices:
        if not is_measured(m, grams):
            reason = f"nothing was measured at {m.name!r}, which the plan names"
            raise FormatError.about(file, reason, "remove it, or plan again")


def _write(
    checkpoint: Checkpoint,
    whole: LossPlan,
    layout: Layout,
    grams: Mapping[str, LossGrams],
    folder: Path,
    journal: Journal,
    track: Track,
) -> tuple[tuple[QuantisedRecord, ...], dict[str, str]]:
    """Stream every tensor to its new place; the records, and the digest of each tensor."""
    matrices = {m.name: m for m in whole.matrices}
    records = {m.name: _record(m, layout, Certificate(0.0, 0.0)) for m in whole.matrices}
    taken = [n for n in checkpoint.tensors if n in layout.copied | layout.stacks or n in matrices]
    with (
        Shards(folder, layout.model, METADATA, keep=True) as model,
        adapter_shards(folder, layout.adapter, keep=True) as adapter,
    ):
        steps = Steps(journal, model, adapter)
        for name in track(taken, "quantising"):
            if (found := steps.finished(name)) is None:
                found = _step(name, checkpoint, matrices, layout, grams, model, adapter)
                steps.add(name, found)
            if found:
                m = matrices[_layer_at(name, layout).name]
                records[m.name] = _record(m, layout, Certificate(**found))
    return tuple(records.values()), model.digests | adapter.digests


def _layer_at(name: str, layout: Layout) -> Layer:
    """The layer whose turn comes at a tensor of the source."""
    return layout.stacks.get(name, Layer(name, tensors=(name,)))


def _step(
    name: str,
    checkpoint: Checkpoint,
    matrices: Mapping[str, Offered],
    layout: Layout,
    grams: Mapping[str, LossGrams],
    model: Shards,
    adapter: Shards,
) -> Mapping[str, float]:
    """Write what becomes of one tensor of the source; the errors of a matrix, else nothing."""
    layer = _layer_at(name, layout)
    m = matrices.get(layer.name)
    if name in layout.copied:
        model.write(layout.copied[name], checkpoint.raw(name))
    elif m is not None and any(layout.parts[m.name]):
        return _stream(checkpoint, layer, m, layout, grams, model, adapter)._asdict()
    elif name in layout.stacks:
        model.write(layer.name, _stacked(checkpoint, layer))
    return {}


def _stacked(checkpoint: Checkpoint, stack: Layer) -> NDArray[np.uint8]:
    """The bytes of a stack that is copied from tensors of its experts."""
    return np.concatenate([checkpoint.raw(name) for name in stack.tensors])


def _stream(
    checkpoint: Checkpoint,
    layer: Layer,
    m: Offered,
    layout: Layout,
    grams: Mapping[str, LossGrams],
    model: Shards,
    adapter: Shards,
) -> Certificate:
    """Write what one matrix or stack becomes, and return the errors of what it stands for."""
    backbones, errors, correction = list[Backbone](), list[_Errors](), None
    uses = Uses(m, grams)
    for expert, weight in enumerate(weights_of(checkpoint, replace(layer, experts=m.experts))):
        with noting(f"at {m.name!r}"):
            both = combined_grams(uses.of(expert))
        offer, shape = layout.chosen[m.name], weight.shape
        backbone, correction = in_worker(stored, weight, offer, both, m, name=m.name, shape=shape)
        backbones += [backbone] if backbone is not None else []
        certificate = _certificate(weight, backbone, correction)
        errors.append(_Errors(frobenius_norm(weight), certificate))
    whole = backbones if m.experts else next(iter(backbones), None)
    for part, array in layout.parts[m.name].paired(whole, correction):
        for name, tensor in part.tensors(array):
            (adapter if part.in_adapter else model).write(name, tensor)
    return _Errors.together(errors)


class _Errors(NamedTuple):
    """The norm of a matrix, and the errors of what is stored of it."""

    norm: float
    certificate: Certificate

    @staticmethod
    def together(errors: list[_Errors]) -> Certificate:
        """The relative Frobenius error of a stack as one matrix, and its worst spectral error."""
        if len(errors) == 1:
            return errors[0].certificate
        norms = np.array([e.norm for e in errors])
        relative = np.array([e.certificate.relative_error for e in errors])
        total = float(np.linalg.norm(norms)) or 1.0
        spectral = max(e.certificate.spectral_error for e in errors)
        return Certificate(float(np.linalg.norm(relative * norms)) / total, spectral)


def _certificate(
    weight: NDArray[np.float32], backbone: Backbone | None, correction: Correction | None
) -> Certificate:
    """The errors of the sum of what is stored, relative to the norms of the weight."""
    product = None if correction is None else correction.operator()
    if backbone is None and product is not None:
        return certify(weight, product.U, product.Vh)
    dense = np.zeros_like(weight) if backbone is None else backbone.dequantized()
    if product is not None:
        dense = dense + product.rows(slice(None))
    return dense_certificate(weight, dense)


def _write_sides(checkpoint: Checkpoint, plan: BitsPlan, layout: Layout, folder: Path) -> None:
    """The configurations, the model file, and the tokenizer's files unchanged."""
    write_config(folder, checkpoint, layout)
    if layout.adapter:
        write_adapter_config(folder, plan)
    checkpoint.copy_side_files(folder)


def _record(m: Offered, layout: Layout, certificate: Certificate) -> QuantisedRecord:
    offer, parts = layout.chosen[m.name], layout.parts[m.name]
    return QuantisedRecord(
        name=m.name,
        shape=m.shape,
        dtype=m.dtype,
        bits=offer.bits,
        group_size=m.group_size,
        rank=offer.rank,
        factor_bits=offer.factor_bits,
        factor_group_sizes=parts.factor_group_sizes,
        source_bytes=m.source_bytes,
        stored_bytes=offer.nbytes,
        predicted_kl=offer.cost,
        relative_error=certificate.relative_error,
        spectral_error=certificate.spectral_error,
        experts=m.experts,
    )
