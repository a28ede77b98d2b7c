"""Write a healed checkpoint: what was trained anew, all else bit for bit, its errors measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, TensorSpec, copy_file, open_safetensors, read_header
from plastic_runtime import Track, untracked
from plastic_runtime.dialling import MANIFEST, SLEEP, Manifest, MatrixRecord, read_manifest

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.exact.exactness import EXACT, write_exact
from plastic_export.folder.adapter_files import CONFIG as ADAPTER_CONFIG
from plastic_export.folder.adapter_files import FILE, FOLDER, adapter_of
from plastic_export.folder.card_file import SOURCE_CARD
from plastic_export.folder.manifest import run_identity, source_record, write_manifest
from plastic_export.folder.places import open_place
from plastic_export.folder.shards import Shards
from plastic_export.format.errors import Errors, dense_certificate
from plastic_export.format.layout import Contents
from plastic_export.format.mixed import MixedFormat
from plastic_export.format.stored import StoredMatrices
from plastic_export.hub.source_card import carried_card
from plastic_export.model.load import MODEL_FILE
from plastic_export.plan.curves import healed_curve
from plastic_export.source.source import Source


def manifest_of(checkpoint: Checkpoint) -> Manifest | None:
    """Return the manifest of a folder that this package wrote; None for any other."""
    return read_manifest(checkpoint.folder) if (checkpoint.folder / MANIFEST).is_file() else None


def check_reference(checkpoint: Checkpoint, reference: Checkpoint) -> None:
    """Refuse a reference that is not what a folder of ours was made from.

    Raises:
        FormatError: If a tensor of the source is missing or of another type or shape, or a weight
            file of it holds other bytes.
    """
    manifest = manifest_of(checkpoint)
    if manifest is None:
        return
    kinds = {t.name: [t.dtype, list(t.shape)] for t in reference.tensors.values()}
    for name, kind in manifest.source["tensors"].items():
        if kinds.get(name) != kind:
            reason = (
                f"it is not the source of {str(checkpoint.folder)!r}, whose {name!r} was {kind}"
            )
            remedy = f"name the source, {manifest.source['name']!r}"
            raise FormatError.about(reference.folder, reason, remedy)
    if source_record(reference)["files"] != manifest.source["files"]:
        reason = f"its weights are not those that {str(checkpoint.folder)!r} was made from"
        remedy = f"name the source, {manifest.source['name']!r}"
        raise FormatError.about(reference.folder, reason, remedy)


def write_healed(
    checkpoint: Checkpoint,
    reference: Checkpoint,
    values: Mapping[str, mx.array],
    record: Mapping[str, Any],
    folder: Path,
    *,
    track: Track = untracked,
) -> None:
    """Write a copy of a checkpoint with other values in some of its tensors.

    Args:
        checkpoint: The one that was healed.
        reference: What it was made from; the manifest names it, and states the errors against it.
        values: New values by tensor name, types and shapes as they were; those of an adapter too.
        record: What the manifest says of the healing.
        folder: Existing folder.
        track: Wraps the loops.
    """
    metadata = read_header(checkpoint.weight_files[0]).metadata
    specs = _specs(checkpoint.tensors.values())
    with Shards(folder, specs, metadata) as model:
        for name in track(list(checkpoint.tensors), "writing"):
            model.write(name, values[name] if name in values else checkpoint.raw(name))
    digests = model.digests | _write_adapter(checkpoint, values, folder)
    _copy_sides(checkpoint, folder)
    old = manifest_of(checkpoint)
    contents = Contents.of(MixedFormat(), (), {}) if old is None else Contents.of_manifest(old)
    if (checkpoint.folder / EXACT).is_file():
        renamed = {} if old is None else old.renamed
        digests |= write_exact(reference, folder, contents, renamed, track=track)
    options, records = {"format": contents.format.name}, list[MatrixRecord]()
    if old is not None:
        options, digests = old.options, old.tensors | digests
        known = list(old.matrices.values())
        records = _records(known, contents, values, folder, reference, track)
    identity = run_identity(reference, {**options, "heal": dict(record)})
    write_manifest(folder, identity, records, digests)


def _specs(infos: Any) -> list[TensorSpec]:
    return [TensorSpec(i.name, i.dtype, i.shape) for i in infos]


def _write_adapter(
    checkpoint: Checkpoint, values: Mapping[str, mx.array], folder: Path
) -> dict[str, str]:
    """Return the digests of its tensors."""
    adapter = adapter_of(checkpoint.folder)
    if adapter is None:
        return {}
    with open_safetensors(adapter / FILE) as file:
        infos = file.header.tensors
        with open_place("adapter", folder, _specs(infos.values())) as shards:
            for name, info in infos.items():
                shards.write(name, values[name] if name in values else file.read(info))
    copy_file(adapter / ADAPTER_CONFIG, folder / FOLDER / ADAPTER_CONFIG)
    return shards.digests


def _copy_sides(checkpoint: Checkpoint, folder: Path) -> None:
    """Configuration, tokenizer, what sleeps; and the model file, of which only ours is known."""
    own = [checkpoint.folder / name for name in ("config.json", SLEEP)]
    for path in filter(Path.is_file, own):
        copy_file(path, folder / path.name, home=checkpoint.folder)
    checkpoint.copy_side_files(folder)
    if (card := carried_card(checkpoint.folder)) is not None:
        copy_file(card, folder / SOURCE_CARD, home=checkpoint.folder)
    if "model_file" in checkpoint.config:
        copy_file(MODEL_FILE, folder / MODEL_FILE.name)


def _records(
    records: Sequence[MatrixRecord],
    contents: Contents,
    values: Mapping[str, mx.array],
    folder: Path,
    reference: Checkpoint,
    track: Track,
) -> list[MatrixRecord]:
    """Return the records with the errors of what is now stored."""
    found, source = [], Source.of(reference)
    with StoredMatrices(folder) as stored:
        for r in track(records, "measuring"):
            names = {spec.name for part in contents.parts[r.name].present for spec in part.specs}
            if names & values.keys():
                restored_to = r.dtype if contents.format.parks else None
                W, parts = _whole(source, r.name), contents.parts[r.name]
                r = _with_errors(r, stored.errors(W, parts, restored_to))
                if r.curve is not None:
                    terms = stored.terms(parts, asleep=True)
                    certificate = dense_certificate(W, terms.summed())
                    r = replace(r, curve=healed_curve(r.curve, W, *terms, certificate))
            found.append(r)
    return found


def _whole(source: Source, name: str) -> NDArray[np.float32]:
    """Return a matrix, or a stack of them with the experts along the first axis."""
    layer = source.layers[name]
    matrices = list(source.matrices(layer))
    return np.stack(matrices) if layer.experts else matrices[0]


def _with_errors(record: MatrixRecord, errors: Errors) -> MatrixRecord:
    return replace(
        record,
        relative_error=errors.relative,
        spectral_error=errors.spectral,
        restored_error=errors.restored,
    )
