"""``plastic.json`` as it is written: what was compressed, how, and the digest of every file."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core.files import files_under, sha256_file, write_json
from plastic_runtime.dialling import MANIFEST, SCHEMA, SLEEP, MatrixRecord, sealed

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.folder.card_file import CARD
from plastic_export.folder.row_checks import row_checks

_PACKAGES = ("plastic-select", "plastic-core", "plastic-runtime", "plastic-export", "mlx", "numpy")


def source_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the identity of a checkpoint: name, revision, digests of its files, types, shapes."""
    return {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "files": {p.name: _file_record(p) for p in checkpoint.weight_files},
        "tensors": {t.name: [t.dtype, list(t.shape)] for t in checkpoint.tensors.values()},
    }


def run_identity(checkpoint: Checkpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that an output depends on: two runs of one identity write the same bytes.

    Args:
        checkpoint: The source, of which every file is read once.
        options: The options of the run.

    Returns:
        Three entries of the manifest: ``options``, ``versions`` and ``source``.
    """
    sides = {"config.json": checkpoint.folder / "config.json", **checkpoint.side_files()}
    return {
        "options": dict(options),
        "versions": versions(),
        "source": source_record(checkpoint)
        | {"side_files": {place: _file_record(path) for place, path in sides.items()}},
    }


def versions() -> dict[str, str]:
    """Return the versions of all that numbers are computed with."""
    return {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}


def together_facts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same in all processes that work together.

    Besides versions and options: the kind of processor and device, whose products have other bits.
    """
    kind = {"machine": platform.machine(), "device": str(mx.default_device())}
    return {"versions": versions(), "options": dict(options), **kind}


def write_manifest(
    folder: Path,
    identity: Mapping[str, Any],
    records: Sequence[MatrixRecord],
    digests: Mapping[str, str],
) -> None:
    """Write ``plastic.json``, last of all files: its presence says that the folder is complete.

    Args:
        folder: The finished folder.
        identity: The identity of the run, from `run_identity`.
        records: One record per matrix.
        digests: SHA-256 of every tensor written, by name.
    """
    manifest = {
        "schema": SCHEMA,
        **identity,
        "matrices": [asdict(r) for r in records],
        "tensors": dict(digests),
        "rows": row_checks(folder / SLEEP),
        "files": {
            p.relative_to(folder).as_posix(): _file_record(p)
            for p in files_under(folder)
            if not p.name.startswith(".") and p != folder / CARD
        },
    }
    write_json(folder / MANIFEST, sealed(manifest))


def _file_record(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
