"""Files in an output that this package did not write, and how they outlive its replacement."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from plastic_core.files import HOLDER, FormatError, read_json, sha256_file, sync_path
from plastic_runtime.dialling import MANIFEST, SLEEP

from plastic_export.folder.card_file import CARD, is_own_card

JOURNAL = ".journal.jsonl"
"""The journal of a run that writes a folder."""

RESERVED = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "plastic_model.py",
    "exact.safetensors",
    SLEEP,
)
"""What an output of any format may hold, or a loader would read as a part of it."""

_NO_LINKS_HERE = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
_NAMED = 8  # files that a refusal names


def foreign_files(folder: Path) -> list[Path]:
    """Return the files, links and empty folders that the manifest of a folder does not list.

    Returns:
        Paths relative to the folder, sorted; none where there is no folder. Without a manifest
        that can be read everything in it is foreign.

    Raises:
        OSError: If a folder in it cannot be read.
    """
    written = listed_files(folder)
    return sorted(path for path in _leaves(folder, Path()) if path.as_posix() not in written)


def listed_files(folder: Path) -> set[str]:
    """Return what the manifest of a folder lists, and what else this package keeps there."""
    try:
        files = read_json(folder / MANIFEST).get("files")
    except (FormatError, FileNotFoundError):
        files = None
    card = {CARD} if is_own_card(folder / CARD) else set[str]()
    return {MANIFEST, HOLDER, JOURNAL, *card, *(files if isinstance(files, dict) else ())}


def check_free(folder: Path, written: Iterable[str], copied: Mapping[str, Path]) -> None:
    """Refuse an output in which foreign files have names that its replacement is to write.

    Args:
        folder: The output that is to be replaced; it need not exist.
        written: Glob patterns of paths in it.
        copied: Files that are to be copied into it, by their place; one that is there with the
            same bytes stays.

    Raises:
        FormatError: If there are such files; it names them.
    """
    patterns, taken = list(written), []
    for path in foreign_files(folder):
        own = [source for place, source in copied.items() if _collides(path, glob.escape(place))]
        differs = any(not _is_same(folder / path, source) for source in own)
        if differs or any(_collides(path, pattern) for pattern in patterns):
            taken.append(path)
    _refuse(folder, taken)


def check_apart(folder: Path, new: Path) -> list[Path]:
    """Return the foreign files of a folder, none of which stands in the way of a file of ``new``.

    Raises:
        FormatError: If one does, and is not the same; it names all of them.
    """
    foreign = foreign_files(folder)
    _refuse(folder, [path for path in foreign if not _fits(folder / path, new, path)])
    return foreign


def carry_over(folder: Path, new: Path, foreign: Sequence[Path]) -> None:
    """Give foreign files a second name in a new folder, and force the names to the disk.

    A file is the same one under both names, with its bits, times and rights; a link stays a link.
    Where a file system knows no hard links, files are copied. What is there already is left.

    Args:
        folder: The folder that holds them.
        new: The folder that is to hold them too.
        foreign: Their paths, relative to either.

    Raises:
        OSError: If the system refuses. Nothing in ``folder`` has changed then.
    """
    made: list[Path] = []
    for path in foreign:
        is_folder = _is_folder(folder / path)
        parents = [*reversed(path.parents[:-1]), *([path] if is_folder else [])]
        for parent in parents:
            if not (new / parent).is_dir():
                os.mkdir(new / parent, 0o700)
                made.append(parent)
        if not is_folder and not os.path.lexists(new / path):
            _link(folder / path, new / path)
    for parent in reversed(made):
        shutil.copystat(folder / parent, new / parent)
    for parent in {new / path.parent for path in [*foreign, *made]}:
        sync_path(parent)


def move_newer(folder: Path, new: Path) -> None:
    """Move what `carry_over` could not know of: files that came into a folder, or changed, since.

    Raises:
        FormatError: If such a file has the name of one that ``new`` lists.
        OSError: If the system refuses. No file is lost then: it is in either folder.
    """
    foreign = foreign_files(folder)
    newer = [path for path in foreign if _is_newer(folder / path, new / path)]
    listed = listed_files(new)
    _refuse(folder, [path for path in newer if path.as_posix() in listed])
    for path in newer:
        (new / path).parent.mkdir(parents=True, exist_ok=True)
        if _is_folder(folder / path):
            (new / path).mkdir(exist_ok=True)
        else:
            os.replace(folder / path, new / path)
    for parent in {(new / path).parent for path in newer}:
        sync_path(parent)


def remove_foreign(folder: Path) -> None:
    """Remove the second names that `carry_over` gave before the process died."""
    for path in foreign_files(folder):
        if not _is_folder(folder / path):
            os.unlink(folder / path)


def _leaves(folder: Path, below: Path) -> Iterator[Path]:
    """Every file, link and empty folder, relative to the folder; links are not followed."""
    if not (folder / below).is_dir():
        return
    for entry in list(os.scandir(folder / below)):
        path = below / entry.name
        if not entry.is_dir(follow_symlinks=False) or not os.listdir(entry.path):
            yield path
        else:
            yield from _leaves(folder, path)


def _collides(path: Path, pattern: str) -> bool:
    """Whether a file, or a folder that it is in, has a name that is to be written or is above."""
    wanted = pattern.split("/")
    shared = min(len(wanted), len(path.parts))
    return all(map(fnmatchcase, path.parts[:shared], wanted[:shared]))


def _fits(foreign: Path, new: Path, path: Path) -> bool:
    """Whether a foreign file can have its place in a new folder."""
    if any(os.path.lexists(new / p) and not _is_folder(new / p) for p in path.parents[:-1]):
        return False
    if not os.path.lexists(new / path):
        return True
    return _is_same(foreign, new / path) or (_is_folder(foreign) and _is_folder(new / path))


def _is_same(one: Path, other: Path) -> bool:
    """Whether both are regular files of the same bytes."""
    states = os.lstat(one), other.stat()
    if not all(stat.S_ISREG(state.st_mode) for state in states):
        return False
    return states[0].st_size == states[1].st_size and sha256_file(one) == sha256_file(other)


def _is_newer(path: Path, other: Path) -> bool:
    """Whether there is no such other file, or an older one; folders need only be there."""
    if not os.path.lexists(other):
        return True
    return not _is_folder(path) and os.lstat(path).st_mtime_ns > os.lstat(other).st_mtime_ns


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        kind = os.lstat(source).st_mode
        if error.errno not in _NO_LINKS_HERE or not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
            raise
        shutil.copy2(source, target, follow_symlinks=False)
        if stat.S_ISREG(kind):
            sync_path(target)


def _refuse(folder: Path, paths: Sequence[Path]) -> None:
    if paths:
        named = ", ".join(repr(path.as_posix()) for path in paths[:_NAMED])
        more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
        reason = f"{named}{more}: not written by this package, and in the way of what is"
        raise FormatError.about(folder, reason, "move it away, or choose another folder")
