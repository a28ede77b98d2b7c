"""Work that several processes begin alike and end together, in one folder that all of them see."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plastic_core.files import BusyError, FormatError, check_same

from plastic_runtime.distributed.pulse import Pulse, beating
from plastic_runtime.distributed.team import LostConnectionError, Team
from plastic_runtime.distributed.watch import (
    INTERRUPTED,
    STAYS,
    Watch,
    early_loss,
    end_for,
    folder_of,
)

LISTENS = 3.0
"""Seconds in which a process that works has said something: three beats."""
PATIENCE = 15.0
"""Seconds that a network file system may take to show what another machine has written."""


class DisagreementError(FormatError):
    """Processes that are to work together are not alike: all of them refuse it.

    Examples:
        >>> print(DisagreementError("process 1 has another version"))
        process 1 has another version
    """


@contextmanager
def working_together(
    team: Team,
    place: Path,
    facts: Mapping[str, Any],
    *,
    stays: str = STAYS,
) -> Iterator[None]:
    """Let processes work on one thing: all begin, and all end once the last has.

    Where one of them dies, hangs or raises, the others end too; see `Watch`. A process alone works
    as without this, once it has removed what several that were cut have left to say.

    Args:
        team: The processes.
        place: The file or folder that they write, or one of them for all.
        facts: What must be the same in all of them, in the types of JSON.
        stays: What is to be said of what is finished, where a process is lost.

    Raises:
        DisagreementError: In all processes alike, if the folder that holds ``place`` is not the
            same for all, or they differ in ``facts``; it names the first difference and a process.
        BusyError: In all processes alike, if several of another run work on ``place``.
        LostConnectionError: If a process ends before all have met.

    Examples:
        >>> with working_together(Team(), Path("plan.json"), {"version": 1}):
        ...     print("working")
        working
    """
    folder = folder_of(Path(os.path.abspath(place)))
    if team.size == 1:
        _clear(team, folder, place)
        yield
        return
    _share_or_end(team, folder, place, stays)
    watch = Watch(folder, team.rank, team.size, stays=stays)
    try:
        check_alike(team, place, facts)
        yield
        team.gathered(None)  # nobody leaves before the last is done
    except BaseException as error:
        # What came from elsewhere has its reason there.
        if isinstance(error, LostConnectionError | KeyboardInterrupt):
            watch.look_for_loss()
        if watch.fail(*_told(error)):
            _remove(team, folder)
        raise
    watch.leave(None)
    with suppress(LostConnectionError):  # the work is done
        team.gathered(None)
    _remove(team, folder)


def check_alike(team: Team, place: Path, facts: Mapping[str, Any]) -> None:
    """Refuse in all processes what is not the same in all of them.

    Args:
        team: The processes.
        place: What they work on, for the message.
        facts: What must be the same, in the types of JSON.

    Raises:
        DisagreementError: Naming the first difference, and the process that differs.

    Examples:
        >>> check_alike(Team(), Path("plan.json"), {"version": 1})
    """
    found = team.gathered({"host": socket.gethostname(), "facts": dict(facts)})
    for rank, one in enumerate(found):
        try:
            check_same(
                place,
                found[0]["facts"],
                one["facts"],
                what=f"process 0 on {found[0]['host']}",
                remedy="start the same command with the same versions and files everywhere",
            )
        except FormatError as error:
            here = f"process {rank} on {one['host']}"
            raise DisagreementError(str(error).replace("this one has", f"{here} has")) from None


def _remove(team: Team, folder: Path) -> None:
    if team.leads:
        shutil.rmtree(folder, ignore_errors=True)


def _told(error: BaseException) -> tuple[str, int]:
    """Return what an error says to people, and the exit status of the others."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    return str(error) or repr(error), 2 if isinstance(error, ValueError) else 3


def _share_or_end(team: Team, folder: Path, place: Path, stays: str) -> None:
    """Make the folder of the processes; end as a `Watch` would where one is lost meanwhile."""
    members = list[Pulse]()
    try:
        members += [Pulse(**one) for one in team.gathered(asdict(Pulse.of(team.rank)))]
        _share(team, folder, place)
    except LostConnectionError as error:
        loss = early_loss(members)
        if loss is not None:
            end_for(loss, team.rank, stays)
        _remove(team, folder)
        raise LostConnectionError(f"another process was lost at the start ({error})") from error


def _share(team: Team, folder: Path, place: Path) -> None:
    """Make the folder of the processes, and refuse one that not all of them see."""
    token, problem = secrets.token_hex(8), None
    _clear(team, folder, place)
    try:
        if team.leads:
            folder.mkdir(parents=True)
            Pulse.of(team.rank).write(folder)  # before another run looks for one
            (folder / token).touch()
    except OSError as error:
        problem = f"{error.strerror} ({folder})"
    token = team.told(token)
    if problem is None and not _appears(folder / token):
        problem = f"{folder.parent} is not the folder that process 0 sees under this name"
    found = team.gathered({"host": socket.gethostname(), "problem": problem})
    for rank, one in enumerate(found):
        if one["problem"] is not None:
            _remove(team, folder)
            reason = f"process {rank} on {one['host']}: {one['problem']}"
            remedy = "choose a place in a folder that all machines share"
            raise DisagreementError(str(FormatError.about(place, reason, remedy)))


def _clear(team: Team, folder: Path, place: Path) -> None:
    """Remove the folder of a run that was cut; refuse that of one which works."""
    other = beating(folder, LISTENS) if team.leads else None
    name = team.told(None if other is None else other.name)
    if name is not None:
        raise BusyError(place, f"{name} of another run")
    _remove(team, folder)


def _appears(file: Path) -> bool:
    """Tell whether a file is there, or comes into sight."""
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        with suppress(OSError):
            os.listdir(file.parent)  # which a network file system answers afresh
        time.sleep(0.2)
    return True


def await_file(file: Path) -> None:
    """Wait until a file that another process has finished can be seen here.

    Raises:
        FileNotFoundError: If it cannot be after `PATIENCE` seconds.

    Examples:
        >>> Path("done").touch()
        >>> await_file(Path("done"))
    """
    if not _appears(file):
        raise FileNotFoundError(2, "another process has written it, but it is not here", str(file))
