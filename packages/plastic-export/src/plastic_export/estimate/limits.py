"""An estimate told in a line, and refused before the work where it exceeds what there is."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from plastic_core.files import memory_limit

from plastic_export.estimate.speed import SLOW, Work, measured_speed

Say = Callable[[str], None]
"""Takes a line for the user."""
START = 8.0
"""Seconds until the libraries and the tokenizer are loaded, and the source is looked through."""
_AT_ONCE = 60.0  # seconds on a slow machine, of what needs no estimate


class Estimate(NamedTuple):
    """What a command is going to take.

    Attributes:
        work: Its work.
        memory: Bytes of memory at its peak.
        disk: Bytes of disk at its peak, the output among them.
    """

    work: Work
    memory: int
    disk: int


class Smaller(NamedTuple):
    """A way to need less memory.

    Attributes:
        option: What to give or to leave out, for a message.
        memory: The peak then, bytes.
    """

    option: str
    memory: int


def announce(
    estimate: Estimate,
    *,
    memory: int | None = None,
    say: Say | None = None,
    smaller: Iterable[Smaller] = (),
) -> None:
    """Refuse what does not fit into memory, and tell what the rest will take.

    Args:
        estimate: What the work takes.
        memory: Bytes that it may take; by default all that the machine, or the process, has.
        say: Is given the sentence, after a trial of this machine, unless the work is done at once.
        smaller: Ways to need less, the least painful first.

    Raises:
        ValueError: If it does not fit, with the figures and the first way that would.

    Examples:
        >>> announce(Estimate(Work(), 3 * 10**9, 0), memory=10**9, smaller=[Smaller("-x", 10**8)])
        Traceback (most recent call last):
        ValueError: `memory`: about 3.0 GB are needed, ... 1.0 GB may be used; -x needs 0.1 GB
    """
    limit = memory_limit() if memory is None else memory
    if estimate.memory > limit:
        fitting = next((s for s in smaller if s.memory <= limit), None)
        way = "a machine with more memory is needed"
        if fitting is not None:
            way = f"{fitting.option} needs {in_gigabytes(fitting.memory)}"
        may = "are there" if memory is None else "may be used"
        raise ValueError(
            f"`memory`: about {in_gigabytes(estimate.memory)} are needed, and "
            f"{in_gigabytes(limit)} {may}; {way}"
        )
    if say is not None and estimate.work.seconds(SLOW) > _AT_ONCE:
        say(sentence(estimate, START + estimate.work.seconds(measured_speed())))


def sentence(estimate: Estimate, seconds: float) -> str:
    """Write an estimate as a line.

    Examples:
        >>> sentence(Estimate(Work(), 1_400_000_000, 600_000_000), 700)
        'about 12 min, 1.4 GB of memory, 0.6 GB of disk'
    """
    memory, disk = in_gigabytes(estimate.memory), in_gigabytes(estimate.disk)
    return f"about {duration(seconds)}, {memory} of memory, {disk} of disk"


def duration(seconds: float) -> str:
    """Write a time as people do: two digits of it.

    Examples:
        >>> duration(8), duration(700), duration(10_000)
        ('8 s', '12 min', '2.8 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def in_gigabytes(nbytes: float) -> str:
    """Write bytes with one decimal of a GB, or two digits where that would be nothing.

    Examples:
        >>> in_gigabytes(16 * 10**9), in_gigabytes(10**6)
        ('16.0 GB', '0.001 GB')
    """
    size = nbytes / 1e9
    return f"{size:.1f} GB" if size >= 0.05 else f"{size:.2g} GB"


def check_disk(place: Path, needed: int, name: Path | None = None) -> None:
    """Refuse before the work what has no room for its end.

    Args:
        place: A folder on the disk.
        needed: Bytes that may be written.
        name: What is written, for the message; by default the folder.

    Raises:
        OSError: With what is needed and what is free.
    """
    free = shutil.disk_usage(place).free
    if free < needed:
        reason = f"{needed} bytes may be needed and {free} are free; choose another disk"
        raise OSError(errno.ENOSPC, reason, str(name or place))
