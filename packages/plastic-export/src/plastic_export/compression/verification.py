"""Check a compressed folder against its manifest: every file, every tensor, every bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, TensorInfo, open_safetensors, sha256_file
from plastic_runtime import Track, is_store, untracked, verify_store
from plastic_runtime.dialling import MANIFEST, Manifest, read_manifest

from plastic_export.folder.row_checks import damaged_rows

_REMEDY = "copy it again, or compress the source again"


def verify(out: str | Path, *, track: Track = untracked) -> list[str]:
    """Return what is wrong with a folder written by ``compress``, or with a sleep store.

    Args:
        out: The folder.
        track: Wraps the loop over the files.

    Returns:
        One line per defect, naming the file, and the tensor where the damage lies in one; empty
        when every file and every tensor has the digest that the manifest states. A digest shows
        that bytes changed, not who wrote them.

    Raises:
        FormatError: If there is no manifest that can be read, and no record of a store either.

    Cost:
        Reads every byte once, damaged files twice.

    Examples:
        >>> verify("FACTORED")
        []
    """
    folder = Path(out)
    if is_store(folder):
        return verify_store(folder)
    manifest = read_manifest(folder)
    files = track(list(manifest.files), "verifying")
    defects = [defect for name in files for defect in _file(folder, name, manifest)]
    extra = {p.name for p in folder.glob("model*.safetensors")} - manifest.files.keys()
    reason = f"not in {MANIFEST}, but a loader would read it"
    defects += [FormatError.about(folder / n, reason, "remove it") for n in sorted(extra)]
    return [str(defect) for defect in defects]


def _file(folder: Path, name: str, manifest: Manifest) -> list[FormatError]:
    path = folder / name
    stated = manifest.files[name]
    if Path(name).is_absolute() or ".." in Path(name).parts:
        reason = f"lists {name!r}, which is not in the folder"
        return [FormatError.about(folder / MANIFEST, reason, "do not use it")]
    if not path.is_file():
        return [FormatError.about(path, "missing", _REMEDY)]
    size, written = path.stat().st_size, stated["bytes"]
    if size == written and sha256_file(path) == stated["sha256"]:
        return []
    reason = f"{size} bytes, not the {written} that were written"
    if size == written:
        reason = f"its {size} bytes are not those that were written"
    return _tensors(path, manifest) or [FormatError.about(path, reason, _REMEDY)]


def _tensors(path: Path, manifest: Manifest) -> list[FormatError]:
    """Name the tensors of a damaged file that differ; none where the damage is elsewhere."""
    if path.suffix != ".safetensors":
        return []
    try:
        with open_safetensors(path) as file:
            return [
                FormatError.about(path, _reason(data, info, manifest), _REMEDY, tensor=name)
                for name, info in file.header.tensors.items()
                if _digest(data := file.read(info)) != manifest.tensors.get(name)
            ]
    except FormatError as error:
        return [error]


def _reason(data: NDArray[np.uint8], info: TensorInfo, manifest: Manifest) -> str:
    """Say what is wrong with a tensor; of components asleep, with which of them."""
    rows = damaged_rows(data, info, manifest.rows)
    named = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    where = f"component {named} of {info.shape[0]} asleep: " if rows else ""
    return f"{where}the bytes are not those that were written"


def _digest(data: NDArray[np.uint8]) -> str:
    return hashlib.sha256(data.data).hexdigest()
