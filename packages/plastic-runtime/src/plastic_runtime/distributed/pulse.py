"""What every process says of itself in a folder that all share, once a second."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

BYTES = 4096
"""Bytes of a record, which is written over the one before in one piece."""
LONGEST_REASON = 1000

State = Literal["works", "fails", "leaves"]
"""``"fails"`` with a reason of its own, ``"leaves"`` in order or because of another."""


@dataclass(frozen=True)
class Pulse:
    """What a process says of itself.

    Attributes:
        rank: Its number.
        pid: The number that its machine has for it.
        host: The name of that machine.
        space: What tells where its ``pid`` counts: processes of one space see each other.
        beat: How often it has said something.
        state: What it does.
        reason: Why it fails.
        status: The exit status that it ends with.

    Examples:
        >>> Pulse(1, 4711, "mac", here()).name
        'process 1 (4711 on mac)'
    """

    rank: int
    pid: int
    host: str
    space: str
    beat: int = 0
    state: State = "works"
    reason: str = ""
    status: int = 0

    @classmethod
    def of(cls, rank: int) -> Pulse:
        """Return the first one of this process."""
        return cls(rank, os.getpid(), socket.gethostname(), here())

    @property
    def name(self) -> str:
        """How people find it."""
        return f"process {self.rank} ({self.pid} on {self.host})"

    def next(self) -> Pulse:
        """Return the one that follows."""
        return replace(self, beat=self.beat + 1)

    def write(self, folder: Path) -> None:
        """Write it into the folder of the processes, over what this process said before."""
        text = json.dumps(asdict(replace(self, reason=self.reason[:LONGEST_REASON])))
        # In place: a network file system may show a renamed file to others only a minute later.
        descriptor = os.open(folder / file_name(self.rank), os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(descriptor, text.encode().ljust(BYTES), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def is_gone(self) -> bool:
        """Tell whether its process has ended, if this one can know."""
        if self.space != here():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _is_dead(self.pid)


def read_pulse(folder: Path, rank: int) -> Pulse | None:
    """Return what a process said last; None if it has said nothing, or is saying it right now."""
    with suppress(OSError, ValueError, TypeError):
        record: Mapping[str, object] = json.loads((folder / file_name(rank)).read_bytes())
        return Pulse(**record)  # type: ignore[arg-type]
    return None


def beating(folder: Path, seconds: float) -> Pulse | None:
    """Return what a process says that goes on saying it works; None where none does.

    Args:
        folder: Where processes say what they do, or did: of those that were cut it is still there.
        seconds: How long to wait for the next beat, if any says that it works.
    """
    before = _working(folder)
    deadline = time.monotonic() + seconds
    while before and time.monotonic() < deadline:
        time.sleep(0.1)
        for rank, pulse in _working(folder).items():
            if rank in before and pulse != before[rank]:
                return pulse
    return None


def _working(folder: Path) -> dict[int, Pulse]:
    ranks = [int(path.stem.rpartition("-")[2]) for path in folder.glob("process-[0-9]*.json")]
    found = {rank: read_pulse(folder, rank) for rank in ranks}
    return {r: p for r, p in found.items() if p and p.state == "works" and not p.is_gone()}


def file_name(rank: int) -> str:
    """Return the name of the file in which a process says what it does.

    Examples:
        >>> file_name(3)
        'process-3.json'
    """
    return f"process-{rank}.json"


@cache
def here() -> str:
    """Return what tells the processes apart that this one can see: machine, and namespace."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        namespace = boot = ""
    return f"{socket.gethostname()} {boot} {namespace}"


def _is_dead(pid: int) -> bool:
    """Tell whether a process has ended and waits for its parent to notice."""
    with suppress(OSError):  # not Linux
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in "ZX"
    return False
