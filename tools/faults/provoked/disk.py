"""Disks that are full, that fill up, that are read-only, and folders that may not be written to."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from provoked.checkpoints import strays, tree
from provoked.child import Ended, command, in_child
from provoked.jobs import Job, low_rank, with_old_output
from provoked.outcome import Outcome

NOBODY = 65534


def full(quick: bool, work: Path) -> list[Outcome]:
    """A small tmpfs, full from the start or filled half way; a limit on the size of files."""
    job = low_rank(work, small=True)
    sizes = 3 if quick else 20
    return [_small(job, sizes), _filling(job, sizes), _limited(job, sizes)]


def refused(quick: bool, work: Path) -> list[Outcome]:
    """Read-only folders, folders of somebody else, places that are no folder."""
    job = low_rank(work, small=True)
    outcome = Outcome(
        "read-only, no permission, no such place",
        "exit 3 before any work, place and reason named",
    )
    with outcome.timed():
        for name, out, mount, user in _places(job):
            with mount:
                ended = in_child(_as(user, command(*job.words[:2], out, *job.words[2:])))
            problems = []
            if ended.status != 3 or str(out.parent) not in ended.printed:
                problems.append(f"exit {ended.status}: {ended.printed[-300:]}")
            if ended.seconds > max(1.0, job.seconds):
                problems.append(f"took {ended.seconds:.1f} s")
            outcome.count(problems, name)
    return [outcome]


def _small(job: Job, sizes: int) -> Outcome:
    """Disks of many sizes, all smaller than what may be needed."""
    outcome = Outcome("a full disk (tmpfs)", "exit 3 before any work; nothing left behind")
    with outcome.timed():
        for number in range(sizes):
            size = 4096 * (2 + 6 * number)
            with _mounted(job.place, f"size={size}") as mounted:
                if not mounted:
                    outcome.remark("could not be mounted here: skipped")
                    break
                ended = in_child(command(*job.all_words()))
                if ended.status == 0:
                    outcome.remark("large enough after all")
                problems = job.problems(ended) if ended.status == 0 else _refusal(job, ended)
                outcome.count(problems, f"{size} bytes")
    return outcome


def _filling(job: Job, sizes: int) -> Outcome:
    """Somebody else fills the disk when part of the work is done."""
    outcome = Outcome(
        "a disk that fills up half way (tmpfs), an old output on it",
        "exit 3, file and ENOSPC named, old output intact; goes on when there is room",
    )
    with_old_output(job)
    old = job.place.parent / "old"
    with outcome.timed():
        for number in range(sizes):
            with _mounted(job.place, "size=2m") as mounted:
                if not mounted:
                    outcome.remark("could not be mounted here: skipped")
                    break
                shutil.copytree(old, job.place, dirs_exist_ok=True)
                outcome.count(_filled(job, number, sizes), f"moment {number}")
    return outcome


def _filled(job: Job, number: int, sizes: int) -> list[str]:
    before = tree(job.out)
    filler = job.place / "filler"

    def fill(call: int) -> None:
        if call == 20 + number * 120 // sizes:
            with suppress(OSError), open(filler, "wb") as stream:
                while True:
                    stream.write(bytes(4096))
                    stream.flush()

    ended = in_child(_counted(job, fill, [*job.all_words(), "--force"]))
    problems = [] if tree(job.out) in (before, job.expected) else ["the old output changed"]
    if ended.status != 3 or "ENOSPC" not in ended.printed or str(job.place) not in ended.printed:
        problems.append(f"exit {ended.status}: {ended.printed[-300:]}")
    filler.unlink(missing_ok=True)
    return problems + job.problems(in_child(command(*job.all_words(), "--force")))


def _limited(job: Job, sizes: int) -> Outcome:
    """``ulimit -f``, which makes a write fail like a full disk."""
    outcome = Outcome(
        "a limit on the size of files (ulimit -f)", "exit 3, file and EFBIG named; resumes without"
    )
    with outcome.timed():
        for number in range(sizes):
            shutil.rmtree(job.place)
            job.place.mkdir()
            limit = 2000 + number * 40_000 // sizes

            def limited(limit: int = limit) -> int:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                return command(*job.all_words())()

            ended = in_child(limited)
            problems = []
            if ended.status == 0:
                outcome.remark("within the limit")
            elif ended.status != 3 or "EFBIG" not in ended.printed:
                problems.append(f"exit {ended.status}: {ended.printed[-300:]}")
            outcome.count(problems + job.problems(job.resumed()), f"{limit} bytes")
    return outcome


def _refusal(job: Job, ended: Ended) -> list[str]:
    clear = ended.status == 3 and ended.printed.startswith(f"error: {job.place}")
    problems = [] if clear else [f"exit {ended.status}: {ended.printed[-300:]}"]
    return problems + [f"left {name}" for name in strays(job.place, set())]


def _counted(job: Job, at: Callable[[int], None], words: list[str]) -> Callable[[], int]:
    """A command that calls ``at(n)`` before its n-th call to the system about its place."""
    from provoked.calls import watched

    count = [0]

    def before(name: str, path: str, arguments: object) -> None:
        count[0] += 1
        at(count[0])

    def call() -> int:
        with watched(job.place, before):
            return command(*words)()

    return call


def _places(job: Job) -> Iterator[tuple[str, Path, AbstractContextManager[object], int | None]]:
    nothing: AbstractContextManager[object] = nullcontext()
    yield "under /proc", Path("/proc/plastic/out"), nothing, None
    yield "under a file", Path(job.words[1], "config.json", "out"), nothing, None
    yield "a name too long", job.place / ("x" * 254), nothing, None
    locked = job.place / "locked"
    locked.mkdir(mode=0o555)
    yield "a folder without permission", locked / "out", nothing, NOBODY
    hidden = job.place / "hidden"
    hidden.mkdir(mode=0o700)
    yield "a folder of somebody else", hidden / "out", nothing, NOBODY
    if os.getuid() == 0 and _can_mount(job.place):
        yield "a read-only disk", job.place / "ro" / "out", _read_only(job.place / "ro"), None


def _as(user: int | None, call: Callable[[], int]) -> Callable[[], int]:
    """The call as another user, where this process may become one."""

    def other() -> int:
        if user is not None and os.getuid() == 0:
            os.setgid(user)
            os.setuid(user)
        return call()

    return other


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[bool]:
    """A tmpfs at a folder for the length of the block, where this process may mount one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    done = _mount("-t", "tmpfs", "-o", options, "tmpfs", folder)
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", folder], check=True)


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    with _mounted(folder, "ro,size=1m"):
        yield


def _can_mount(folder: Path) -> bool:
    with _mounted(folder / "probe", "size=1m") as mounted:
        return mounted


def _mount(*words: object) -> bool:
    if shutil.which("mount") is None or os.getuid() != 0:
        return False
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0
