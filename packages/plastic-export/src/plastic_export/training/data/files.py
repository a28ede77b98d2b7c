"""The files that hold training and validation rows, found by their names."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from plastic_core.files import FormatError, read_json

from plastic_export.calibration.rows import FORMATS

Split = Literal["train", "valid"]
OF_MLX_LM: dict[Split, str] = {"train": "train.jsonl", "valid": "valid.jsonl"}
SUFFIXES = (".jsonl", ".parquet", ".arrow")
SPLITS = "dataset_dict.json"  # of a folder that the package `datasets` saved, with several splits
SAVED = ("state.json", "dataset_info.json")  # of one with a single split
_WORDS: dict[str, Split | Literal["test"]] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""What the first word of a name says that its rows are for, as in data sets of the Hub."""
_SHARD = re.compile(r"[-_.]?(\d+)(?:-of-(\d+))?$")


class DataFiles(NamedTuple):
    """The files, or folders that ``datasets`` saved, of each kind, in the order of their rows."""

    train: tuple[Path, ...]
    valid: tuple[Path, ...]


def find_data_files(places: Sequence[Path]) -> DataFiles:
    """Return the files that some places stand for.

    A file is one to validate on if its name begins so (``valid``, ``validation``, ``val``,
    ``dev``), else one to train on. Of a folder, ``train.jsonl`` and ``valid.jsonl`` are taken, as
    by mlx-lm; where one is missing, all shards of the one split whose name begins so, such as
    ``train-00000-of-00002.parquet``, in the folder or its folder ``data``; and where no name says
    that rows are to be trained on, all files whose names say nothing else.

    Args:
        places: Files and folders. Nothing is read but names, and the list of splits of a folder
            that ``datasets`` saved.

    Raises:
        FormatError: If a place is not there or holds no rows, a shard is missing, or a folder has
            several splits to train on.
    """
    found = [_of_folder(place) if place.is_dir() else _of_file(place) for place in places]
    train, valid = (tuple(p for files in found for p in files[i]) for i in (0, 1))
    if not train:
        reason = "it holds rows to validate on, and none to train on"
        raise FormatError.about(places[0], reason, f"name {OF_MLX_LM['train']} too")
    return DataFiles(train, valid)


def _of_file(place: Path) -> DataFiles:
    if not place.exists():
        kind = "file" if place.suffix in SUFFIXES else "folder"
        raise FormatError.about(place, f"there is no such {kind}", _remedy(place))
    if place.suffix not in SUFFIXES:
        reason = f"its name does not end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise FormatError.about(place, reason, f"give one line per row: {FORMATS}")
    valid = _use(_split_name(place)) == "valid"
    return DataFiles((), (place,)) if valid else DataFiles((place,), ())


def _of_folder(folder: Path) -> DataFiles:
    if all((folder / name).is_file() for name in SAVED):
        return DataFiles((folder,), ())
    splits = _splits(folder) or _splits(folder / "data")
    train, valid = (_chosen(folder, splits, kind) for kind in ("train", "valid"))
    if not (train or valid):
        train = tuple(p for name, paths in splits.items() if _use(name) is None for p in paths)
    if not (train or valid):
        train = (folder / OF_MLX_LM["train"],)  # whose reader says that it is missing
    return DataFiles(train, valid)


def _splits(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder by the name of their split, in the order of their names."""
    splits: dict[str, list[Path]] = defaultdict(list)
    if (folder / SPLITS).is_file():
        for name in read_json(folder / SPLITS).get("splits", ()):
            splits[str(name)].append(folder / str(name))
    elif folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix in SUFFIXES and not path.name.startswith("."):
                splits[_split_name(path)].append(path)
    return splits


def _chosen(folder: Path, splits: dict[str, list[Path]], kind: Split) -> tuple[Path, ...]:
    """Return the files of the one split that is for this."""
    if (own := folder / OF_MLX_LM[kind]).is_file():
        return (own,)
    names = [name for name in splits if _use(name) == kind]
    names = [kind] if kind in names else names
    if len(names) > 1:
        reason = f"it has several splits to {kind} on, {', '.join(names)}"
        raise FormatError.about(folder, reason, "name the files of one with --data")
    paths = splits[names[0]] if names else []
    _check_complete(paths)
    return tuple(paths)


def _check_complete(paths: Sequence[Path]) -> None:
    """Refuse shards of which one is missing, or which are in two forms."""
    if len({path.suffix for path in paths}) > 1:
        reason = f"the same rows may be in {paths[-1].name} too"
        raise FormatError.about(paths[0], reason, "name one of the forms with --data")
    found = [(path, match) for path in paths if (match := _SHARD.search(path.stem)) and match[2]]
    there = {int(match[1]) for _, match in found}
    for path, match in found:
        missing = [i for i in range(int(match[2])) if i not in there]
        if missing:
            reason = f"of {int(match[2])} shards number {missing[0]:0{len(match[1])}} is missing"
            raise FormatError.about(path, reason, "download the rest of them")


def _split_name(path: Path) -> str:
    """Return the name of a file without the number of its shard."""
    return _SHARD.sub("", path.stem) or path.stem


def _use(name: str) -> str | None:
    """Return what the rows of a split are for, if its name says so."""
    return _WORDS.get(re.split(r"[-_. ]", name.lower())[0])


def _remedy(place: Path) -> str:
    """Say what to name instead; what looks like a data set of the Hub is fetched first."""
    remedy = f"name one with {' and '.join(OF_MLX_LM.values())}"
    if place.suffix in SUFFIXES:
        return "name a file of rows, or a folder with some"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(place)):
        return remedy
    fetch = ("hf", "download", "--repo-type", "dataset", str(place), "--local-dir", "DIR")
    return f"{remedy}; a data set of the Hub is fetched first: {shlex.join(fetch)}"
