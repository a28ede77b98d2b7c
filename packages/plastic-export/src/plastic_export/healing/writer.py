"""Write a healed checkpoint: what was trained anew, all else bit for bit, its errors measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core.files import (
    FormatError,
    OpenFile,
    TensorInfo,
    TensorSpec,
    array_from_bytes,
    copy_file,
    open_safetensors,
    read_header,
)
from plastic_core.linalg import Float32, frobenius_norm
from plastic_runtime import Track, untracked

from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import module_path
from plastic_export.compression.write_ranks import METADATA, dense_certificate, wake
from plastic_export.exact.exactness import EXACT, write_exact
from plastic_export.folder.adapter_files import CONFIG as ADAPTER_CONFIG
from plastic_export.folder.adapter_files import FILE, FOLDER, adapter_of
from plastic_export.folder.manifest import (
    MANIFEST,
    SLEEP,
    Manifest,
    MatrixRecord,
    QuantisedRecord,
    read_manifest,
    run_identity,
    source_record,
    write_manifest,
)
from plastic_export.folder.shards import Shards, as_float32, as_stored
from plastic_export.format.adapter import adapter_shards
from plastic_export.model.load import MODEL_FILE

Record = MatrixRecord | QuantisedRecord


def manifest_of(checkpoint: Checkpoint) -> Manifest | None:
    """The manifest of a folder that this package wrote; None for any other."""
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
    there = {t.name: [t.dtype, list(t.shape)] for t in reference.tensors.values()}
    for name, kind in manifest.source["tensors"].items():
        if there.get(name) != kind:
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
    metadata = read_header(checkpoint.weight_files[0]).metadata or METADATA
    specs = _specs(checkpoint.tensors.values())
    with Shards(folder, specs, metadata) as model:
        for name in track(list(checkpoint.tensors), "writing"):
            model.write(name, values[name] if name in values else checkpoint.raw(name))
    digests = model.digests | _write_adapter(checkpoint, values, folder)
    _copy_sides(checkpoint, folder)
    if (checkpoint.folder / EXACT).is_file():
        digests |= write_exact(reference, folder, track=track)
    old = manifest_of(checkpoint)
    options = {"format": "mixed"} if old is None else old.options
    records: list[Any] = []  # all of one kind
    if old is not None:
        known = (old.matrices | old.quantised).values()
        records = _records(list(known), values, folder, reference, track)
        digests = old.tensors | digests
    identity = run_identity(reference, {**options, "heal": dict(record)})
    write_manifest(folder, identity, records, digests)


def _specs(infos: Any) -> list[TensorSpec]:
    return [TensorSpec(i.name, i.dtype, i.shape) for i in infos]


def _write_adapter(
    checkpoint: Checkpoint, values: Mapping[str, mx.array], folder: Path
) -> dict[str, str]:
    """The digests of its tensors."""
    adapter = adapter_of(checkpoint.folder)
    if adapter is None:
        return {}
    with open_safetensors(adapter / FILE) as file:
        infos = file.header.tensors
        with adapter_shards(folder, _specs(infos.values())) as shards:
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
    if "model_file" in checkpoint.config:
        copy_file(MODEL_FILE, folder / MODEL_FILE.name)


def _records(
    records: Sequence[Record],
    values: Mapping[str, mx.array],
    folder: Path,
    reference: Checkpoint,
    track: Track,
) -> list[Any]:
    """The records with the errors of what is now stored."""
    healed = {name.rpartition(".")[0].removesuffix(".base") for name in values}
    healed |= {path.removesuffix(".u").removesuffix(".v") for path in healed}
    with _Written(folder) as written:
        return [
            written.measured(r, reference) if module_path(r.name) in healed else r
            for r in track(records, "measuring")
        ]


class _Written(ExitStack):
    """The matrices of a folder of ours that has no manifest yet, as what they stand for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._model = self.enter_context(open_checkpoint(folder))
        self._adapter, self._sleep = (
            self.enter_context(open_safetensors(path)) if path.is_file() else None
            for path in (folder / FOLDER / FILE, folder / SLEEP)
        )

    def measured(self, record: Record, reference: Checkpoint) -> Record:
        """A record with the errors of what is stored now."""
        W, path = reference.matrix(record.name), module_path(record.name)
        stored = self._dense(path)
        errors = dense_certificate(W, stored)
        found = replace(
            record,
            relative_error=errors.relative_error,
            spectral_error=errors.spectral_error,
        )
        if isinstance(found, QuantisedRecord):
            return found
        if self._sleep is not None and found.parked:
            U, V = (_read(self._sleep, f"{path}.sleep.{side}") for side in "uv")
            stored = wake(stored, U.T, V)
        restored = as_float32(as_stored(stored, found.dtype))
        error = frobenius_norm(W - restored) / frobenius_norm(W)
        return replace(found, restored_error=error)

    def _dense(self, path: str) -> Float32:
        """The sum of backbone and correction, shape (out, in)."""
        parts = []
        for name in (f"{path}.weight", f"{path}.base.weight"):
            if name in self._model.tensors:
                parts.append(self._model.matrix(name))
        if f"{path}.v.weight" in self._model.tensors:
            U, V = (self._model.matrix(f"{path}.{side}.weight") for side in "uv")
            bare = path in self._model.config["plastic"]["ranks"]
            parts.append(U @ V if bare else U.T @ V)
        if self._adapter is not None and f"{path}.lora_a" in self._adapter.header.tensors:
            A, B = (_read(self._adapter, f"{path}.lora_{side}") for side in "ab")
            parts.append((A @ B).T)
        return sum(parts[1:], parts[0])


def _read(file: OpenFile, name: str) -> Float32:
    info: TensorInfo = file.header.tensors[name]
    return as_float32(array_from_bytes(file.read(info), info.dtype, info.shape))
