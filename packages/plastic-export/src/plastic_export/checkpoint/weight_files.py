"""The files of a folder that hold the weights, and the tensors in each."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from plastic_core.files import (
    Fingerprint,
    FormatError,
    TensorInfo,
    member,
    open_safetensors,
    read_index,
    recognise_name,
)

from plastic_export.checkpoint.warning import warn_about

INDEX = "model.safetensors.index.json"
PATTERN = "model*.safetensors"
WHOLE = "model.safetensors"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_DOWNLOAD = "download the checkpoint again"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weights of a checkpoint folder, headers only.

    Attributes:
        tensors: Every tensor by name, file by file and in the order of the bytes.
        fingerprints: What each file was when its header was checked.
    """

    tensors: dict[str, TensorInfo]
    fingerprints: dict[Path, Fingerprint]


def find_weights(folder: Path) -> WeightFiles:
    """Find the weight files of a folder and check them against each other.

    They are those that mlx-lm reads, whatever the index says; where it says otherwise, a warning
    names the tensor. One file is open at a time, so any number of shards will do.

    Args:
        folder: The checkpoint.

    Returns:
        What is in them.

    Raises:
        FormatError: If there are none; if a shard is missing; if a tensor is in two files; if a
            file is damaged or a link that leaves the folder.
    """
    index = read_index(folder / INDEX, home=folder) if member(folder, INDEX) else {}
    names = sorted(name for name in os.listdir(folder) if fnmatchcase(name, PATTERN))
    if not names:
        raise _missing(folder / min(index.values())) if index else _no_weights(folder)
    for name in _missing_numbers(names):
        raise _missing(folder / name)
    files = WeightFiles({}, {})
    for name in names:
        _add(folder, name, files)
    _check_whole(folder, names, index, files.tensors)
    if index:
        _compare(folder / INDEX, index, files.tensors)
    return files


def _check_whole(
    folder: Path, names: list[str], index: dict[str, str], tensors: dict[str, TensorInfo]
) -> None:
    """Refuse a folder that lacks all shards of its index, unless another whole model is there."""
    if WHOLE in names or any(map(_NUMBERED.fullmatch, names)):
        return
    for name, file in index.items():
        if name not in tensors and _NUMBERED.fullmatch(file):
            raise _missing(folder / file)


def _missing(path: Path) -> FormatError:
    return FormatError.about(path, "a shard of this checkpoint that is not there", _DOWNLOAD)


def _missing_numbers(names: list[str]) -> list[str]:
    """Return the first of the numbered shards "3 of 7" that should be there and are not listed."""
    for match in filter(None, map(_NUMBERED.fullmatch, names)):
        stem, count = match["stem"], match["count"]
        for number in range(1, min(int(count), len(names) + 1) + 1):
            if (name := f"{stem}-{number:05d}-of-{count}.safetensors") not in names:
                return [name]
    return []


def _add(folder: Path, name: str, files: WeightFiles) -> None:
    path = folder / name
    with open_safetensors(path, home=folder) as file:
        files.fingerprints[path] = file.fingerprint
        for info in sorted(file.header.tensors.values(), key=lambda info: info.start):
            if (other := files.tensors.setdefault(info.name, info)) is not info:
                reason = f"it is in {other.file.name} too"
                remedy = "remove the file that is wrong"
                raise FormatError.about(path, reason, remedy, tensor=info.name)


def _compare(path: Path, index: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    """Warn where the index says otherwise than the files, which alone count for mlx-lm."""
    nowhere = {name: file for name, file in index.items() if name not in tensors}
    elsewhere = {
        name: f"{index[name]} and is in {info.file.name}"
        for name, info in tensors.items()
        if index.get(name, info.file.name) != info.file.name
    }
    forgotten = {n: info.file.name for n, info in tensors.items() if n not in index}
    ignored = "mlx-lm ignores the index, as is done here"
    _warn(path, nowhere, "it should be in {} and is nowhere", ignored)
    _warn(path, elsewhere, "it should be in {}", ignored)
    read = "mlx-lm reads it all the same, or fails where its model has no place for it"
    _warn(path, forgotten, "it is in {}, and the index leaves it out", read)


def _warn(path: Path, places: dict[str, str], reason: str, outcome: str) -> None:
    """Warn of the first of some tensors, and say how many there are."""
    for name, place in list(places.items())[:1]:
        more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        warn_about(path, reason.format(place) + more, outcome, tensor=name)


def _no_weights(folder: Path) -> FormatError:
    """Say what there is in place of safetensors."""
    for name in sorted(os.listdir(folder)):
        if (foreign := recognise_name(Path(name).suffix)) is not None:
            return FormatError.about(
                folder / name, f"{foreign.what}, not safetensors", foreign.remedy
            )
    others = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    hint = f" (there is {others[0]})" if others else ""
    reason = f"it holds no {PATTERN}{hint}"
    return FormatError.about(folder, reason, "name the folder of a safetensors checkpoint")
