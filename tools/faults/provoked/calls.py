"""The calls to the system that our file layer makes, seen one by one, and made to fail."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from provoked.checkpoints import tree
from provoked.child import command, in_child
from provoked.jobs import Job, low_rank, with_old_output
from provoked.outcome import Outcome

NAMES = (
    "open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate",
    "preadv", "pread", "read", "scandir", "listdir",
)  # fmt: skip
"""Functions of ``os`` through which the file layer does everything."""

Before = Callable[[str, str, tuple[Any, ...]], None]
After = Callable[[str, tuple[Any, ...], Any], None]


@contextmanager
def watched(work: Path, before: Before, after: After | None = None) -> Iterator[None]:
    """Call ``before(name, path, arguments)`` before each call that is about a path in ``work``.

    ``after(name, arguments, result)`` follows where the call succeeds. Calls on a descriptor
    count where it was opened in ``work``.
    """
    opened: dict[int, str] = {}

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            subject = arguments[0] if arguments else "."
            path = opened.get(subject) if isinstance(subject, int) else os.fspath(subject)
            if path is None or not os.path.abspath(path).startswith(str(work)):
                return real(*arguments, **options)
            before(name, path, arguments)
            result = real(*arguments, **options)
            if name == "open":
                opened[result] = os.path.abspath(path)
            if after is not None:
                after(name, arguments, result)
            return result

        return call

    def closed(descriptor: int) -> None:
        opened.pop(descriptor, None)
        close(descriptor)

    close = os.close
    with ExitStack() as stack:
        for name in NAMES:
            stack.enter_context(patch.object(os, name, wrap(name, getattr(os, name))))
        stack.enter_context(patch.object(os, "close", closed))
        yield


def calls(quick: bool, work: Path) -> list[Outcome]:
    """The N-th call fails, for every N, while an earlier output is replaced."""
    job = low_rank(work, small=True)
    old = with_old_output(job)
    return [
        _each_fails(job, old, number, 61 if quick else 1)
        for number in (errno.EIO, errno.ENOSPC, errno.EACCES)
    ]


def _each_fails(job: Job, old: Path, number: int, step: int) -> Outcome:
    code = errno.errorcode[number]
    outcome = Outcome(
        f"the N-th call fails with {code}, for every N" + ("" if step == 1 else f" of {step}"),
        "exit 3, file and errno named, old output intact; then resumes",
    )
    N = 1
    with outcome.timed():
        while _one_fails(outcome, job, number, N, old):
            N += step
    return outcome


def _one_fails(outcome: Outcome, job: Job, number: int, N: int, old: Path) -> bool:
    """Fail one call of a run; whether the run had as many calls."""
    shutil.rmtree(job.place)
    shutil.copytree(old, job.place)
    before = tree(job.out)
    reached = job.place.parent / "reached"
    reached.unlink(missing_ok=True)
    left = [N]

    def fail(name: str, path: str, arguments: tuple[Any, ...]) -> None:
        left[0] -= 1
        if left[0] == 0:
            with patch.object(os, "open", _REAL_OPEN):
                reached.write_text(f"{name} {path}")
            raise OSError(number, os.strerror(number), None if name in _BARE else path)

    def call() -> int:
        with watched(job.place.parent, fail):
            return command(*job.all_words(), "--force")()

    ended = in_child(call)
    if not reached.exists():
        return False
    what = f"call {N}, {reached.read_text()}"
    problems = []
    if ended.status == 0:
        outcome.remark("had no effect")
        problems += [] if tree(job.out) == job.expected else ["the output differs"]
    else:
        if ended.status != 3 or f"({errno.errorcode[number]})" not in ended.printed:
            problems.append(f"exit {ended.status}: {ended.printed[-400:]}")
        if ended.printed.startswith("error: input or output"):
            problems.append(f"names no file: {ended.printed}")
        there = tree(job.out)
        if there == job.expected:
            outcome.remark("after the new output was in place")
        elif there != before:
            problems.append("the old output changed")
    resumed = in_child(command(*job.all_words(), "--force"))
    outcome.count(problems + job.problems(resumed), what)
    return True


_REAL_OPEN = os.open
_BARE = ("write", "fsync", "ftruncate", "preadv", "pread", "read")  # whose errors name no file
