"""The components of a compressed folder, read a range at a time from files that stay open."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import (
    ITEM_BYTES,
    Closing,
    FormatError,
    OpenFile,
    TensorInfo,
    array_from_bytes,
    check_unheld,
    open_safetensors,
    partial_of,
)

from plastic_runtime.dialling.dialled_formats import component_records
from plastic_runtime.dialling.folder_sizes import FolderSizes
from plastic_runtime.dialling.manifest import (
    MANIFEST,
    SLEEP,
    Manifest,
    MatrixRecord,
    read_manifest,
)
from plastic_runtime.dialling.spendable import Spendable, component_ranks
from plastic_runtime.dialling.strips import StoredMatrix, Strip, stored_matrix

Bytes = NDArray[np.uint8]


class FolderComponents(Closing):
    """The components of a folder. A context manager.

    Only headers and the manifest are read, until a component is asked for.

    Args:
        folder: Folder that ``plastic compress`` or ``plastic dial`` wrote.

    Attributes:
        folder: The folder.
        matrices: The matrices with components, by tensor name.
        sizes: The sizes that the folder can be loaded at.

    Raises:
        FormatError: If it is damaged, has no components, or it is not known what they are worth.
        BusyError: If another process is writing it.
        OSError: If a file cannot be read.

    Examples:
        >>> with FolderComponents(Path("FACTORED")) as components:
        ...     sorted(components.matrices)
        ['block.0.up.weight', 'block.1.up.weight']
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        check_unheld(partial_of(folder))
        manifest = read_manifest(folder)
        sleep = [SLEEP] if (folder / SLEEP).is_file() else []
        records = component_records(folder, manifest, asleep=bool(sleep))
        with ExitStack() as stack:
            names = sorted(path.name for path in folder.glob("model*.safetensors"))
            files = {name: _opened(folder, name, manifest, stack) for name in [*names, *sleep]}
            self._files = {file.path: file for file in files.values()}
            sleeping = _tensors([files[name] for name in sleep])
            model = _tensors([files[name] for name in names])
            self.matrices = {r.name: stored_matrix(folder, r, model, sleeping) for r in records}
            self.sizes = _sizes(folder, manifest, self.matrices, model)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close every file."""
        self._stack.close()

    def read(self, strip: Strip, start: int, stop: int) -> mx.array:
        """Return some neighbouring components as the model holds them, every bit.

        Args:
            strip: One tensor of a matrix.
            start: The first component.
            stop: The component after the last one.

        Returns:
            Of shape ``strip.shape(stop - start)``.

        Raises:
            FormatError: If the file changed, or does not fit into memory.
        """
        border = strip.awake.shape[strip.axis] if strip.awake else 0
        parts = []
        if strip.awake is not None and start < border:
            parts.append(self._awake(strip, strip.awake, start, min(stop, border)))
        if strip.asleep is not None and stop > border:
            rows = max(start, border) - border, stop - border
            parts.append(self._asleep(strip, strip.asleep, *rows))
        data = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=strip.axis)
        return array_from_bytes(data.reshape(-1), strip.dtype, strip.shape(stop - start))

    def _awake(self, strip: Strip, info: TensorInfo, start: int, stop: int) -> Bytes:
        file = self._files[info.file]
        read = file.read_columns if strip.across else file.read_rows
        return read(info, start, stop).reshape(strip.shape(stop - start)[0], -1)

    def _asleep(self, strip: Strip, info: TensorInfo, start: int, stop: int) -> Bytes:
        data = self._files[info.file].read_rows(info, start, stop)
        if not strip.across:
            return data.reshape(stop - start, -1)
        items = data.reshape(stop - start, strip.length, ITEM_BYTES[strip.dtype])
        return np.ascontiguousarray(items.swapaxes(0, 1)).reshape(strip.length, -1)


def _opened(folder: Path, name: str, manifest: Manifest, stack: ExitStack) -> OpenFile:
    file = stack.enter_context(open_safetensors(folder / name, home=folder))
    stated = manifest.files.get(name, {}).get("bytes")
    if stated != file.fingerprint.size:
        there = "no such file" if stated is None else f"{stated} bytes"
        reason = f"it has {file.fingerprint.size} bytes, and {MANIFEST} names {there}"
        raise FormatError.about(folder / name, reason, "copy the folder again")
    return file


def _tensors(files: list[OpenFile]) -> dict[str, TensorInfo]:
    return {name: info for file in files for name, info in file.header.tensors.items()}


def _sizes(
    folder: Path,
    manifest: Manifest,
    matrices: dict[str, StoredMatrix],
    model: dict[str, TensorInfo],
) -> FolderSizes:
    records = list(manifest.matrices.values())
    turned = sum(m.record.stored_bytes for m in matrices.values())
    return FolderSizes(
        matrices={name: _spendable(folder, m) for name, m in matrices.items()},
        strategy=manifest.options.get("strategy"),
        rest_bytes=sum(info.nbytes for info in model.values()) - turned,
        unturned_bytes=sum(r.stored_bytes for r in records) - turned,
        weights=sum(_weights(r) for r in records),
        source_bytes=sum(r.source_bytes for r in records),
    )


def _spendable(folder: Path, m: StoredMatrix) -> Spendable:
    ranks = tuple(r for r in component_ranks(folder, m.record) if r <= m.components)
    return Spendable(m.record, ranks, m.component_bytes)


def _weights(r: MatrixRecord) -> int:
    return r.shape[0] * r.shape[1] * max(r.experts, 1)
