"""Several processes on one folder, and a source that somebody writes to while it is read."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from plastic_core.files import sha256_file

from provoked.calls import watched
from provoked.checkpoints import strays, tree
from provoked.child import Child, Ended, command, in_child
from provoked.jobs import Job, low_rank, with_old_output
from provoked.outcome import Outcome


def busy(quick: bool, work: Path) -> list[Outcome]:
    """Two processes compress to one folder, while a third one reads it."""
    job = low_rank(work, small=True)
    old = tree(with_old_output(job) / "out")
    outcome = Outcome(
        "two processes write one folder, a reader in a loop",
        "the second exits 4 at once and names the first; every file read is old or new, whole",
    )
    with outcome.timed():
        for number in range(3 if quick else 20):
            outcome.count(_two(job, old), f"pair {number}")
    return [outcome]


def source_changes(quick: bool, work: Path) -> list[Outcome]:
    """The source is written to, cut or replaced, early, half way and late."""
    outcome = Outcome(
        "the source is rewritten, cut, renamed over while it is read",
        "exit 2, 'changed while it was being read'; nothing written",
    )
    with outcome.timed():
        for name, change in CHANGES.items():
            for moment in (1,) if quick else (0, 1, 2):
                outcome.count(
                    _changed(work / f"{name} {moment}", change, moment), f"{name} {moment}"
                )
    return [outcome]


def _two(job: Job, old: dict[str, str]) -> list[str]:
    problems = []
    held = job.place.parent / "held"
    release = job.place.parent / "release"
    for path in (held, release):
        path.unlink(missing_ok=True)

    def wait(name: str, path: str, arguments: object) -> None:
        if name == "write" and path.endswith(".tmp") and not held.exists():
            held.touch()
            while not release.exists():
                time.sleep(0.01)

    def first() -> int:
        with watched(job.place, wait):
            return command(*job.all_words(), "--force")()

    writer, reader = Child(first), Child(lambda: _reads(job, old, release))
    while not held.exists():
        time.sleep(0.005)
    second = in_child(command(*job.all_words(), "--force"))
    if second.status != 4 or f"process {writer.pid} on " not in second.printed:
        problems.append(f"exit {second.status}: {second.printed[-300:]}")
    if second.seconds > 5:
        problems.append(f"took {second.seconds:.1f} s")
    release.touch()
    ended, read = writer.wait(), reader.wait()
    problems += job.problems(ended)
    return problems + ([] if read.status == 0 else [f"the reader: {read.printed[-300:]}"])


def _reads(job: Job, old: dict[str, str], release: Path) -> int:
    """Read the output again and again until a little after the writer has gone on."""
    last = None
    while last is None or time.monotonic() < last + 0.5:
        if last is None and release.exists():
            last = time.monotonic()
        for name, digest in old.items():
            with suppress(FileNotFoundError):  # between the two renamings
                if sha256_file(job.out / name) not in (digest, job.expected[name]):
                    raise ValueError(f"{name} is neither the old one nor the new one")
    return 0


def _rewrite(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8:] = bytes(8)
    with path.open("r+b") as stream:
        stream.write(content)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _rename(path: Path) -> None:
    other = path.with_name("other")
    shutil.copyfile(path, other)
    _rewrite(other)
    other.replace(path)


CHANGES: dict[str, Callable[[Path], None]] = {"rewrite": _rewrite, "cut": _cut, "rename": _rename}


def _changed(work: Path, change: Callable[[Path], None], moment: int) -> list[str]:
    work.mkdir()
    job = low_rank(work, small=True)
    source = Path(job.words[1])
    file = sorted(source.glob("model*.safetensors"))[-1]
    counted = _reads_of(job, file)
    if counted == 0:
        raise RuntimeError("nothing was read")
    turn = [counted // 8, counted // 2, counted - 1][moment]
    ended = _changed_at(job, file, turn, change)
    problems = [f"left {name}" for name in strays(job.place, set())]
    if ended.status != 2 or "changed while" not in ended.printed:
        problems.append(f"exit {ended.status}: {ended.printed[-300:]}")
    return problems


def _reads_of(job: Job, file: Path) -> int:
    """Count the reads of a file that a run makes."""
    record = job.place.parent / "count"

    def call() -> int:
        count = 0

        def see(name: str, path: str, arguments: object) -> None:
            nonlocal count
            count += name in ("pread", "preadv") and path == str(file)

        with watched(file.parent, see):
            status = command(*job.all_words())()
        record.write_text(str(count))
        return status

    ended = in_child(call)
    if ended.status:
        raise RuntimeError(ended.printed)
    shutil.rmtree(job.place)
    job.place.mkdir()
    return int(record.read_text())


def _changed_at(job: Job, file: Path, turn: int, change: Callable[[Path], None]) -> Ended:
    def call() -> int:
        count = 0

        def see(name: str, path: str, arguments: object) -> None:
            nonlocal count
            count += name in ("pread", "preadv") and path == str(file)
            if count == turn:
                count += 1
                change(file)

        with watched(file.parent, see):
            return command(*job.all_words())()

    return in_child(call)
