"""Wake everything: from a compressed folder back to a dense checkpoint."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import (
    AtomicFile,
    FormatError,
    OpenFile,
    TensorSpec,
    array_from_bytes,
    open_safetensors,
    write_json,
)
from plastic_runtime import Track, untracked

from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import COMPANIONS, module_path
from plastic_export.compression.verification import verify
from plastic_export.compression.write_ranks import METADATA, wake
from plastic_export.exact.exactness import EXACT, Exact
from plastic_export.folder.manifest import Manifest, MatrixRecord, read_manifest
from plastic_export.folder.output import OutputFolder
from plastic_export.folder.shards import Shards, as_float32, as_stored


@dataclass(frozen=True)
class Restored:
    """What ``restore`` gave back.

    Attributes:
        dest: The folder that was written.
        exact: Names of the tensors whose bits are those of the source.
        bounds: Relative Frobenius error of every other tensor, by name.
        proved: Whether every tensor was compared with the SHA-256 that it had in the source.
    """

    dest: Path
    exact: tuple[str, ...]
    bounds: dict[str, float]
    proved: bool = False


def restore(out: str | Path, dest: str | Path, *, track: Track = untracked) -> Restored:
    """Write the dense checkpoint that ``out`` was made from, with every component awake.

    If ``out`` was compressed with ``exact``, every tensor comes back with the bits it had, of a
    plan's output too, and is compared with the digest taken then; so does ``config.json``. Else
    tensors that were not factored come back bit for bit. A factored matrix comes back as the sum
    of all its components, rounded to the storage type; how far that is from the source was
    measured when it was compressed, and is returned. A matrix that was quantised in the source
    comes back dense.

    Args:
        out: Folder written by ``compress``. It is verified first.
        dest: Folder to write; must not exist, or be empty.
        track: Wraps the long loops.

    Raises:
        FormatError: If ``out`` is damaged, or was written by a plan without ``exact``, so that
            nothing of it sleeps.
        OSError: If writing fails. Nothing is left behind.
    """
    folder = Path(out)
    manifest = read_manifest(folder)
    exactly = EXACT in manifest.files
    if manifest.quantised and not exactly:
        reason = "it was written by a plan without --exact, and nothing of it was parked"
        remedy = f"take its source again, {manifest.source['name']!r}"
        raise FormatError.about(folder, reason, remedy)
    defects = verify(folder, track=track)
    if defects:
        raise FormatError(defects[0])
    if exactly:
        return _restore_exactly(folder, Path(dest), track)
    factored = {n: r for n, r in manifest.matrices.items() if r.choice == "factored"}
    specs = _specs(manifest, factored)
    with ExitStack() as stack:
        awake = stack.enter_context(open_checkpoint(folder))
        target = stack.enter_context(OutputFolder(dest, source=folder))
        asleep = _open_sleep(folder, stack)
        with Shards(target, specs, METADATA) as shards:
            for spec in track(specs, "waking"):
                if spec.name in factored:
                    weight = _wake(factored[spec.name], awake, asleep)
                    shards.write(spec.name, as_stored(weight, spec.dtype))
                else:
                    shards.write(spec.name, awake.raw(_stored_name(spec.name, awake)))
        config = {k: v for k, v in awake.config.items() if k not in ("model_file", "plastic")}
        write_json(target / "config.json", config)
        awake.copy_side_files(target)
    exact = tuple(spec.name for spec in specs if spec.name not in factored)
    return Restored(Path(dest), exact, {n: r.restored_error for n, r in factored.items()})


def _restore_exactly(folder: Path, dest: Path, track: Track) -> Restored:
    """Write every tensor of the source, each compared with its digest."""
    with Exact(folder) as source, OutputFolder(dest, source=folder) as target:
        with Shards(target, source.specs(), METADATA) as shards:
            for name in track(list(source.kept), "restoring"):
                shards.write(name, source.raw(name))
        with AtomicFile(target / "config.json") as config:
            config.write(source.config.encode())
        source.output.copy_side_files(target)
        return Restored(dest, tuple(source.kept), {}, proved=True)


def _specs(manifest: Manifest, factored: dict[str, MatrixRecord]) -> list[TensorSpec]:
    """The tensors of the source in its order; what was packed and factored comes back dense."""
    unpacked = {module_path(name) for name in factored}
    specs = []
    for name, (dtype, shape) in manifest.source["tensors"].items():
        path, _, leaf = name.rpartition(".")
        if name in factored:
            specs.append(TensorSpec(name, factored[name].dtype, factored[name].shape))
        elif path not in unpacked or leaf not in COMPANIONS:
            specs.append(TensorSpec(name, dtype, tuple(shape)))
    return specs


def _stored_name(name: str, awake: Checkpoint) -> str:
    """Where a copied tensor stands: a bias moves to the second factor of its layer."""
    return name if name in awake.tensors else f"{name.removesuffix('.bias')}.u.bias"


def _open_sleep(folder: Path, stack: ExitStack) -> OpenFile | None:
    path = folder / "sleep.safetensors"
    return stack.enter_context(open_safetensors(path)) if path.is_file() else None


def _wake(r: MatrixRecord, awake: Checkpoint, asleep: OpenFile | None) -> NDArray[np.float32]:
    path = module_path(r.name)
    if r.name in awake.tensors:
        weight = awake.matrix(r.name)
    else:
        weight = awake.matrix(f"{path}.u.weight") @ awake.matrix(f"{path}.v.weight")
    if asleep is None or not r.parked:
        return weight
    U, V = (_read(asleep, f"{path}.sleep.{side}") for side in "uv")
    return wake(weight, U.T, V)


def _read(file: OpenFile, name: str) -> NDArray[np.float32]:
    info = file.header.tensors[name]
    return as_float32(array_from_bytes(file.read(info), info.dtype, info.shape))
