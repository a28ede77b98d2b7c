"""What a disk may hold after the power fails: every prefix of the calls of a run, three ways.

A file keeps the bytes that were forced to the disk, a folder the names. Either nothing else
survives, or every name does and still no byte that was not forced (what a file system that journals
its metadata may do: a renamed file comes back empty), or everything does (as after kill -9).
"""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provoked.calls import watched
from provoked.checkpoints import tree
from provoked.child import command, in_child
from provoked.jobs import Job, low_rank, with_old_output
from provoked.outcome import Outcome

Operation = tuple[str, tuple[Any, ...]]


@dataclass
class File:
    """A file: what is written, and what of it is on the disk."""

    live: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


@dataclass
class Folder:
    """A folder: its names, and those that are on the disk."""

    live: dict[str, Any] = field(default_factory=dict)
    durable: dict[str, Any] = field(default_factory=dict)


class Disk:
    """A model of a file system under one folder, driven by recorded calls."""

    def __init__(self, root: Path, content: Path) -> None:
        self._root = root
        self._top = _loaded(content)
        self._open: dict[int, File | Folder] = {}
        self._places: dict[int, int] = {}

    def play(self, operation: Operation) -> None:
        """Do one call."""
        name, arguments = operation
        getattr(self, f"_{name}")(*arguments)

    def write_to(self, target: Path, mode: str) -> None:
        """Make the folder that is found after the power failed."""
        _materialize(self._top, target, mode)

    def _parent(self, path: str) -> tuple[Folder, str]:
        parts = Path(path).relative_to(self._root).parts
        folder = self._top
        for part in parts[:-1]:
            folder = folder.live[part]
        return folder, parts[-1] if parts else ""

    def _opened(self, path: str, descriptor: int, created: bool) -> None:
        parent, name = self._parent(path)
        if not name:
            self._open[descriptor] = self._top
            return
        if created and name not in parent.live:
            parent.live[name] = File()
        if name in parent.live:
            self._open[descriptor] = parent.live[name]
            self._places[descriptor] = 0

    def _write(self, descriptor: int, data: bytes) -> None:
        file, place = self._open[descriptor], self._places[descriptor]
        assert isinstance(file, File)
        file.live[place : place + len(data)] = data
        self._places[descriptor] = place + len(data)

    def _seek(self, descriptor: int, place: int) -> None:
        self._places[descriptor] = place

    def _ftruncate(self, descriptor: int, size: int) -> None:
        file = self._open[descriptor]
        assert isinstance(file, File)
        del file.live[size:]

    def _fsync(self, descriptor: int) -> None:
        node = self._open[descriptor]
        if isinstance(node, File):
            node.durable = bytes(node.live)
        else:
            node.durable = dict(node.live)

    def _rename(self, source: str, target: str) -> None:
        (old, a), (new, b) = self._parent(source), self._parent(target)
        new.live[b] = old.live.pop(a)

    def _mkdir(self, path: str) -> None:
        parent, name = self._parent(path)
        parent.live[name] = Folder()

    def _unlink(self, path: str) -> None:
        parent, name = self._parent(path)
        del parent.live[name]


MODES = {
    "strict": "nothing survives that was not forced to the disk",
    "names first": "names survive, bytes that were not forced do not",
    "kill": "everything survives",
}


def powerloss(quick: bool, work: Path) -> list[Outcome]:
    """Record a run that replaces an earlier output, and cut it after each call."""
    job = low_rank(work, small=True)
    old = with_old_output(job)
    before = tree(old / "out")
    operations = _recorded(job)
    outcomes = []
    for mode, meaning in MODES.items():
        outcome = Outcome(
            f"power fails after each of {len(operations)} calls: {meaning}",
            "old or new output whole; goes on to the same bytes; nothing left over",
        )
        step = 37 if quick else 1
        with outcome.timed():
            for count in range(0, len(operations) + 1, step):
                disk = Disk(job.place, old)
                for operation in operations[:count]:
                    disk.play(operation)
                shutil.rmtree(job.place)
                disk.write_to(job.place, mode)
                outcome.count(_problems(job, before), f"after {count} calls")
        outcomes.append(outcome)
    return outcomes


def _problems(job: Job, before: dict[str, str]) -> list[str]:
    """What is wrong with what the disk holds, and with what becomes of it."""
    problems = []
    place = job.out if job.out.exists() else job.place / ".out.replaced"
    names = {".journal.jsonl", ".holder.json"}
    there = {name: digest for name, digest in tree(place).items() if name not in names}
    if there not in (before, job.expected):
        problems.append(f"{place.name} is neither the old output nor the new one")
    resumed = in_child(command(*job.all_words(), "--force"))
    return problems + job.problems(resumed)


def _recorded(job: Job) -> list[Operation]:
    """The calls of an undisturbed run that change the folder of the output."""
    record = job.place.parent / "record"

    def call() -> int:
        operations: list[Operation] = []
        status = _with_record(job, operations)
        record.write_bytes(pickle.dumps(operations))
        return status

    ended = in_child(call)
    if ended.status:
        raise RuntimeError(ended.printed)
    shutil.rmtree(job.place)
    job.place.mkdir()
    found: list[Operation] = pickle.loads(record.read_bytes())
    return found


def _with_record(job: Job, operations: list[Operation]) -> int:
    lseek = os.lseek

    def after(name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if (operation := _operation(name, arguments, result)) is not None:
            operations.append(operation)

    def seek(descriptor: int, place: int, how: int) -> int:
        reached = lseek(descriptor, place, how)
        operations.append(("seek", (descriptor, reached)))
        return reached

    os.lseek = seek
    try:
        with watched(job.place, lambda *_: None, after):
            return command(*job.all_words(), "--force")()
    finally:
        os.lseek = lseek


def _operation(name: str, arguments: tuple[Any, ...], result: Any) -> Operation | None:
    if name == "open":
        path, flags = arguments[0], arguments[1]
        return "opened", (os.path.abspath(path), result, bool(flags & os.O_CREAT))
    if name == "write":
        return "write", (arguments[0], bytes(memoryview(arguments[1])[:result]))
    if name in ("fsync", "ftruncate"):
        return name, arguments
    if name in ("rename", "replace"):
        return "rename", tuple(os.path.abspath(path) for path in arguments)
    if name in ("mkdir", "unlink", "rmdir"):
        path = os.path.abspath(arguments[0])
        return ("mkdir" if name == "mkdir" else "unlink"), (path,)
    return None


def _loaded(path: Path) -> Folder:
    """A folder as it lies on the disk, all of it durable."""
    folder = Folder()
    for entry in path.iterdir():
        if entry.is_dir():
            folder.live[entry.name] = _loaded(entry)
        else:
            content = entry.read_bytes()
            folder.live[entry.name] = File(bytearray(content), content)
    folder.durable = dict(folder.live)
    return folder


def _materialize(node: Folder, target: Path, mode: str) -> None:
    target.mkdir()
    for name, child in (node.durable if mode == "strict" else node.live).items():
        if isinstance(child, Folder):
            _materialize(child, target / name, mode)
        else:
            (target / name).write_bytes(child.live if mode == "kill" else child.durable)
