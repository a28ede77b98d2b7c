"""The end of all processes where one of them has died, hangs or fails: nobody waits for ever."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from plastic_core.files import Closing

from plastic_runtime.distributed.pulse import Pulse, read_pulse

EVERY = 1.0
"""Seconds between two beats."""
SILENT = 20.0
"""Seconds without a beat after which a process is given up: all end within 30."""
SUSPECT = 4.0
"""Seconds that a process which is stopped looks for the cause elsewhere, and the beats of those
that it then takes for lost (heuristic: a launcher stops all where one has ended)."""
GRACE = 3.0
"""Seconds that a process which fails gives the others to fail by themselves, of the same cause."""
STAYS = "what is finished stays: the same command goes on with it, with any number of processes"
STAYS_FOR_AS_MANY = (
    "the newest state stays: the same command goes on from it, with as many processes"
)
INTERRUPTED = 5
"""Exit status of a run that can be gone on with."""


class Heard(NamedTuple):
    """What is known of another process.

    Attributes:
        pulse: What it said last.
        silent: Seconds since it said something new.
        is_gone: Whether its process has ended, as far as this one can know.
    """

    pulse: Pulse
    silent: float
    is_gone: bool


class Loss(NamedTuple):
    """A process that is lost to the others, and why.

    Attributes:
        pulse: What it said last.
        reason: What is to be said of it.
        status: The exit status of the others.
        hangs: Whether it may still be there.
    """

    pulse: Pulse
    reason: str
    status: int
    hangs: bool = False


def loss_among(heard: Sequence[Heard], silent: float = SILENT) -> Loss | None:
    """Return the first process that is lost, None if there is none. Pure.

    Args:
        heard: What is known of the other processes.
        silent: Seconds without a beat after which a process is given up.

    Examples:
        >>> loss_among([Heard(Pulse(1, 7, "mac", "here"), silent=0.5, is_gone=True)]).reason
        'was killed'
    """
    for pulse, since, is_gone in heard:
        if pulse.state == "fails" and since >= GRACE:
            return Loss(pulse, pulse.reason, pulse.status)
        if pulse.state == "works" and is_gone:
            return Loss(pulse, "was killed", INTERRUPTED)
    for pulse, since, _ in heard:
        if pulse.state == "works" and since > silent:
            reason = f"has not been heard of for {since:.0f} seconds"
            return Loss(pulse, reason, INTERRUPTED, hangs=True)
    return None


def prints(rank: int, loss: Loss) -> bool:
    """Tell whether a process is to name the lost one. Pure.

    The first process does; of the first one itself, if it did not fail with a message of its own,
    the second does.

    Examples:
        >>> loss = Loss(Pulse(1, 7, "mac", "here"), "was killed", 5)
        >>> [prints(rank, loss) for rank in (0, 2, 3)]
        [True, False, False]
    """
    if loss.pulse.rank != 0:
        return rank == 0
    return rank == 1 and loss.pulse.state != "fails"


def end_for(loss: Loss, rank: int, stays: str, end: Callable[[int], object] = os._exit) -> None:
    """Print the line that names the lost process, if it is for this one to do, and end."""
    if prints(rank, loss):
        sys.stderr.write(f"error: {loss.pulse.name} {_said(loss)}; {stays}\n")
        sys.stderr.flush()
    end(loss.status)


def early_loss(members: Sequence[Pulse], seconds: float = SUSPECT) -> Loss | None:
    """Return the process of this machine that has ended, before any watched the others.

    Args:
        members: What each process said of itself once all had met.
        seconds: How long to look for it: connections break before a process is seen to have ended.
    """
    deadline = time.monotonic() + seconds
    while True:
        loss = loss_among([Heard(one, 0.0, one.is_gone()) for one in members])
        if loss is not None or time.monotonic() > deadline:
            return loss
        time.sleep(EVERY / 4)


class Watch(Closing):
    """A thread that says once a second that this process works, and looks at the others.

    Where one of them is lost, it prints one line that names it and ends this process, whatever it
    is doing: what is on disk is as after a kill, which a later run goes on from. A process on the
    same machine that hangs is killed, so that whoever started it need not wait for it.

    Args:
        folder: The folder of the processes.
        rank: The number of this one.
        size: How many there are.
        stays: What is to be said of what is finished.
        end: Ends the process with a status.

    Note:
        A process whose thread of Python does not run is taken for one that hangs, so no single
        call may hold its lock for `SILENT` seconds. One that computes for ever is not noticed.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        size: int,
        *,
        stays: str = STAYS,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._folder, self._rank, self._stays, self._end = folder, rank, stays, end
        self._own = Pulse.of(rank)
        self._latest: dict[int, tuple[Pulse | None, float]] = {
            other: (None, time.monotonic()) for other in range(size) if other != rank
        }
        self._lock, self._over = threading.Lock(), threading.Event()
        self._say(self._own)
        self._thread = threading.Thread(target=self._run, name="plastic watch", daemon=True)
        self._thread.start()

    def leave(self, error: BaseException | None) -> None:
        """Say that this process leaves, unless it failed, and look no more."""
        self._say(replace(self._own, state="leaves"))
        self.close()

    def close(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def fail(self, reason: str, status: int) -> bool:
        """Say why this process fails, for the others to end; the first one prints it.

        What the first one fails with it prints by itself.

        Returns:
            Whether all others have ended, or the first one has, of which this one waits a while.
        """
        self._say(replace(self._own, state="fails", reason=reason, status=status))
        awaited = [other for other in self._latest if self._rank == 0 or other == 0]
        deadline = time.monotonic() + GRACE + 3 * EVERY
        while not (over := not any(map(self._works, awaited))) and time.monotonic() < deadline:
            time.sleep(EVERY / 4)
        self.close()
        return over

    def _works(self, other: int) -> bool:
        pulse = read_pulse(self._folder, other)
        return pulse is not None and pulse.state == "works" and not pulse.is_gone()

    def look_for_loss(self, seconds: float = SUSPECT) -> None:
        """Wait a while for the reason why this process is stopped or cannot reach another.

        It does not return where that is found: a process that has died, or is silent.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._look(SILENT)
            time.sleep(EVERY / 4)
        self._look(SUSPECT - EVERY)

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            with suppress(OSError):  # a disk that is full is for the work to find
                self._say(self._own.next())
            self._look(SILENT)

    def _say(self, pulse: Pulse) -> None:
        with self._lock:
            if self._own.state == "works":
                self._own = pulse
                pulse.write(self._folder)

    def _look(self, silent: float) -> None:
        """End this process where another is lost."""
        with self._lock:
            loss = loss_among(self._heard(), silent)
            if loss is None or self._over.is_set() or self._own.state != "works":
                return
            self._own = replace(self._own, state="leaves")
            with suppress(OSError):
                self._own.write(self._folder)
        if loss.hangs and loss.pulse.space == self._own.space:
            with suppress(OSError):
                os.kill(loss.pulse.pid, signal.SIGKILL)
        if loss.pulse.rank == 0 and loss.pulse.state == "fails":
            self._await_end(loss.pulse)
        end_for(loss, self._rank, self._stays, self._end)

    def _await_end(self, first: Pulse) -> None:
        """Let the first process say why it fails: a launcher stops all where one has ended."""
        deadline = time.monotonic() + GRACE
        while not first.is_gone() and time.monotonic() < deadline:
            time.sleep(EVERY / 20)

    def _heard(self) -> list[Heard]:
        now, heard = time.monotonic(), list[Heard]()
        for other, (before, since) in self._latest.items():
            pulse = read_pulse(self._folder, other)
            if pulse is not None and pulse != before:
                before, since = pulse, now
            self._latest[other] = before, since
            known = before or Pulse(other, 0, "an unknown machine", "")
            heard.append(Heard(known, now - since, before is not None and before.is_gone()))
        return heard


def _said(loss: Loss) -> str:
    return f"failed: {loss.reason}" if loss.pulse.state == "fails" else loss.reason


def folder_of(place: Path) -> Path:
    """Return the folder, beside what processes write together, in which they say what they do.

    Examples:
        >>> folder_of(Path("plan.json")).name
        '.plan.json.processes'
    """
    return place.with_name(f".{place.name}.processes")
