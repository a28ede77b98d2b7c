"""A call in a process forked off this one, which may be killed at any moment.

The parent must not have computed anything with MLX: its threads do not survive a fork.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

DEADLINE = 120.0


class Ended(NamedTuple):
    """The end of a child.

    Attributes:
        status: Exit status, or the negative number of a signal.
        printed: What it wrote to standard output and standard error.
        seconds: How long it lived.
    """

    status: int
    printed: str
    seconds: float


class Child:
    """A forked call. Standard output and error go to a file.

    Args:
        call: What to do; its result is the exit status, None is 0.
    """

    def __init__(self, call: Callable[[], int | None]) -> None:
        self._log = tempfile.NamedTemporaryFile("r", suffix=".log", errors="replace")  # noqa: SIM115
        self._start = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            _run(call, self._log.name)

    def send(self, number: int) -> None:
        """Send a signal, unless the child has ended and was waited for."""
        os.kill(self.pid, number)

    def wait(self, deadline: float = DEADLINE) -> Ended:
        """Wait for its end; a child that misses the deadline is killed and says so."""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            seconds = time.perf_counter() - self._start
            if pid:
                break
            if seconds > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return Ended(-signal.SIGALRM, f"hung for {deadline:.0f} s", seconds)
            time.sleep(0.002)
        printed = Path(self._log.name).read_text(errors="replace")
        self._log.close()
        return Ended(os.waitstatus_to_exitcode(status), printed, seconds)


def in_child(call: Callable[[], int | None], deadline: float = DEADLINE) -> Ended:
    """Run a call in a child to its end."""
    return Child(call).wait(deadline)


def command(*words: object) -> Callable[[], int]:
    """``plastic`` with these words, as a call whose result is the exit status."""

    def call() -> int:
        from plastic_export.cli import main

        try:
            main([str(word) for word in words])
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    return call


def _run(call: Callable[[], int | None], log: str) -> None:
    status = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
        descriptor = os.open(log, os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = call() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
