"""Carry out a plan of bits: a checkpoint in mixed bits that stock mlx-lm loads without a flag."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import Certificate

from plastic_export.atomic import sha256_file, write_json
from plastic_export.calibration_loss import InputGrams
from plastic_export.compression import check_room, no_cache
from plastic_export.execute import METADATA, dense_certificate
from plastic_export.lossplan import BitsPlan, Offered
from plastic_export.manifest import QuantisedRecord, write_manifest
from plastic_export.matrices import COMPANIONS, is_packed, module_path
from plastic_export.output import OutputFolder
from plastic_export.planfile import LossPlan, check_source, grams_file, read_plan
from plastic_export.pricing import blaming, rounded
from plastic_export.reader import Checkpoint, open_checkpoint
from plastic_export.shards import Shards
from plastic_export.track import Track, untracked
from plastic_export.writer import TensorSpec


@dataclass(frozen=True)
class Quantised:
    """What ``execute_plan`` did.

    Attributes:
        out: The folder that was written.
        plan: The plan it executed.
        matrices: One record per matrix: bits, bytes, errors.
        source_bytes: Bytes of the weight files of the source.
        model_bytes: Bytes of the model files written.
    """

    out: Path
    plan: BitsPlan
    matrices: tuple[QuantisedRecord, ...]
    source_bytes: int
    model_bytes: int


def execute_plan(
    source: str | Path,
    out: str | Path,
    plan_file: str | Path,
    *,
    bits_per_weight: float | None = None,
    revision: str | None = None,
    force: bool = False,
    track: Track = untracked,
) -> Quantised:
    """Write the checkpoint that a plan describes, in the format of stock mlx-lm.

    Every matrix is quantised as it was when it was priced; all other tensors are copied bit for
    bit. One matrix and one Gram are in memory at a time. Nothing appears at ``out`` before
    everything is written and synced.

    Args:
        source: The source of the plan: folder or Hub id.
        out: Folder to write; must not exist, or be empty.
        plan_file: File that ``plan_checkpoint`` wrote, its file of Grams beside it.
        bits_per_weight: Which of the plan's budgets; may be left out where it holds one.
        revision: Commit or branch, for a Hub id.
        force: Replace ``out`` where it is an earlier output.
        track: Wraps the loop over the tensors.

    Raises:
        FormatError: If the plan is damaged or of another source (the difference is named), its
            Grams are missing or others, or a file of the source is damaged.
        ValueError: If the plan does not hold the budget.
        OSError: If writing fails. Nothing is left behind.
    """
    file = Path(plan_file)
    whole = read_plan(file)
    plan = whole.budget(bits_per_weight)
    with open_checkpoint(source, revision=revision) as checkpoint:
        check_source(whole, checkpoint, file)
        grams_path = grams_file(whole, file)
        check_room(checkpoint, Path(out))
        with OutputFolder(out, force=force, source=checkpoint.folder) as folder, no_cache():
            with InputGrams(grams_path) as grams:
                records, digests = _write(checkpoint, whole, plan, grams, folder, track)
            checkpoint.check_unchanged()
            write_json(folder / "config.json", quantised_config(checkpoint, whole.matrices, plan))
            for path in checkpoint.side_files():
                shutil.copyfile(path, folder / path.name)
            options = {
                "format": "quantised",
                "bits_per_weight": plan.budget,
                "plan_sha256": sha256_file(file),
                "calibration": dict(whole.calibration),
            }
            write_manifest(folder, checkpoint, options, records, digests)
            return Quantised(
                out=Path(out),
                plan=plan,
                matrices=records,
                source_bytes=sum(p.stat().st_size for p in checkpoint.weight_files),
                model_bytes=sum(p.stat().st_size for p in folder.glob("model*.safetensors")),
            )


def layout(
    checkpoint: Checkpoint, matrices: Mapping[str, Offered], plan: BitsPlan
) -> list[TensorSpec]:
    """Name, type and shape of every tensor that will be written, in the order of the source."""
    packed = {module_path(name) for name, offer in plan.chosen.items() if offer.bits is not None}
    specs = []
    for name, info in checkpoint.tensors.items():
        path, _, leaf = name.rpartition(".")
        if path not in packed or leaf not in (*COMPANIONS, "weight"):
            specs.append(TensorSpec(name, info.dtype, info.shape))
        elif leaf == "weight":
            specs += packed_specs(matrices[name], plan.chosen[name].bits or 0)
    return specs


def packed_specs(m: Offered, bits: int) -> list[TensorSpec]:
    """``P.weight`` (out, in * bits / 32), uint32; ``P.scales`` and ``P.biases`` (out, groups)."""
    path, (out, in_) = module_path(m.name), m.shape
    groups = (out, in_ // m.group_size)
    return [
        TensorSpec(f"{path}.weight", "U32", (out, in_ * bits // 32)),
        TensorSpec(f"{path}.scales", m.dtype, groups),
        TensorSpec(f"{path}.biases", m.dtype, groups),
    ]


def quantised_config(
    checkpoint: Checkpoint, matrices: tuple[Offered, ...], plan: BitsPlan
) -> dict[str, Any]:
    """The configuration with an entry for every matrix of the plan, as mlx-lm reads them.

    What is packed in the source and stays so keeps the packing that it has there.
    """
    entries: dict[str, Any] = {}
    for m in matrices:
        bits = plan.chosen[m.name].bits
        if bits is not None:
            entries[module_path(m.name)] = {"group_size": m.group_size, "bits": bits}
        elif not is_packed(m.name, checkpoint.tensors):
            entries[module_path(m.name)] = False
    packed = [entry for entry in entries.values() if entry]
    if not packed:
        return dict(checkpoint.config)
    common = Counter((e["group_size"], e["bits"]) for e in packed).most_common(1)[0][0]
    defaults = checkpoint.quantization or dict(zip(("group_size", "bits"), common, strict=True))
    quantization = {**defaults, **entries}
    both = {"quantization": quantization, "quantization_config": quantization}
    return checkpoint.config | both


def _write(
    checkpoint: Checkpoint,
    whole: LossPlan,
    plan: BitsPlan,
    grams: InputGrams,
    folder: Path,
    track: Track,
) -> tuple[tuple[QuantisedRecord, ...], dict[str, str]]:
    """Stream every tensor to its new place; the records, and the digest of each tensor."""
    matrices = {m.name: m for m in whole.matrices}
    records = {m.name: _record(m, plan, Certificate(0.0, 0.0)) for m in whole.matrices}
    specs = layout(checkpoint, matrices, plan)
    with Shards(folder, specs, METADATA) as model:
        written: dict[str, mx.array] = {}
        for spec in track(specs, "quantising"):
            m = matrices.get(spec.name)
            bits = None if m is None else plan.chosen[m.name].bits
            if m is not None and bits is not None:
                weight, gram = checkpoint.matrix(m.name), grams.read(module_path(m.name))
                written, certificate = _packed(weight, m, bits, gram)
                records[m.name] = _record(m, plan, certificate)
            array = written.pop(spec.name, None)
            model.write(spec.name, checkpoint.raw(spec.name) if array is None else array)
    return tuple(records.values()), model.digests


def _packed(
    weight: NDArray[np.float32], m: Offered, bits: int, gram: NDArray[np.float64]
) -> tuple[dict[str, mx.array], Certificate]:
    """The three tensors by name, and the errors of what they stand for."""
    with blaming(m.name):
        backbone = rounded(weight, bits, gram, m)
    arrays = {f"{module_path(m.name)}.{leaf}": a for leaf, a in backbone.arrays().items()}
    return arrays, dense_certificate(weight, backbone.dequantized())


def _record(m: Offered, plan: BitsPlan, certificate: Certificate) -> QuantisedRecord:
    offer = plan.chosen[m.name]
    return QuantisedRecord(
        name=m.name,
        shape=m.shape,
        dtype=m.dtype,
        bits=offer.bits,
        group_size=m.group_size,
        source_bytes=m.source_bytes,
        stored_bytes=offer.nbytes,
        predicted_kl=offer.cost,
        relative_error=certificate.relative_error,
        spectral_error=certificate.spectral_error,
    )
