"""The memory and the time of this process and of those it started, as the system counts them."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Spent(NamedTuple):
    """Seconds that a call took.

    Attributes:
        cpu: On all cores together, in this process and in those it started and waited for.
        wall: On the clock.
    """

    cpu: float
    wall: float


def spent(f: Callable[[], T]) -> tuple[Spent, T]:
    """Return the seconds of a call, and what it gave."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    found = f()
    return Spent(cpu_seconds() - cpu, time.perf_counter() - wall), found


def cpu_seconds() -> float:
    """Return the processor time so far, of all threads and of the processes waited for."""
    counted = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in counted)


def resident() -> int:
    """Return the bytes of this process in memory now; on Linux `peak` counts anew from now on."""
    if sys.platform != "linux":
        return peak_resident()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Return the most bytes in memory since `resident` was asked, or ever where it is not Linux."""
    return _status("VmHWM") if sys.platform == "linux" else peak_resident()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def peak_resident() -> int:
    """Return the most bytes that this process has had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
