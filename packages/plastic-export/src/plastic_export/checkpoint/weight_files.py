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

INDEX = "model.safetensors.index.json"
PATTERN = "model*.safetensors"
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

    One file is open at a time, so any number of shards will do.

    Args:
        folder: The checkpoint.

    Returns:
        What is in them.

    Raises:
        FormatError: If there are none; if the index names a file or a tensor that is not
            there or leaves one out; if a tensor is in two files; if a file is damaged or
            a link that leaves the folder.
    """
    index = read_index(folder / INDEX, home=folder) if member(folder, INDEX) else None
    present = sorted(name for name in os.listdir(folder) if fnmatchcase(name, PATTERN))
    names = sorted(set(index.values())) if index else present
    if not names:
        raise _no_weights(folder)
    _check_presence(folder, names, present)
    files = WeightFiles({}, {})
    for name in names:
        _add(folder, name, files)
    if index:
        _check_index(folder / INDEX, index, files.tensors)
    return files


def _check_presence(folder: Path, names: list[str], present: list[str]) -> None:
    """Check that every file named is there, and no other that a loader would read."""
    for name in (*names, *_missing_numbers(names)):
        if member(folder, name) is None:
            reason = "a shard of this checkpoint that is not there"
            raise FormatError.about(folder / name, reason, _DOWNLOAD)
    for name in present:
        if name not in names:
            reason = f"{INDEX} does not name it, and mlx-lm would load it all the same"
            raise FormatError.about(folder / name, reason, "remove the one that is wrong")


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


def _check_index(path: Path, index: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    for name, shard in index.items():
        if name not in tensors or tensors[name].file.name != shard:
            where = f"in {tensors[name].file.name}" if name in tensors else "nowhere"
            reason = f"it should be in {shard} and is {where}"
            raise FormatError.about(path, reason, _DOWNLOAD, tensor=name)
    for name, info in tensors.items():
        if name not in index:
            reason = f"it is in {info.file.name} and the index leaves it out"
            raise FormatError.about(path, reason, _DOWNLOAD, tensor=name)


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
