"""Processes killed at random moments of a plan and of a compression, and what is then gone on with.

    uv run tools/bench/joined/kills.py --moments 100

Two processes work on the shipped checkpoint at small settings; one of them gets SIGKILL. The other
is to end within 30 seconds with status 5 and one line that names it. Nothing may stand at the place
of the output, unless it is the whole. Then the same command, in one process or two, is to end with
the bytes of a run that nobody disturbed, and to leave nothing else. On Linux: processes are forks
of one that has loaded the libraries and done nothing yet, so that moments fall into the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from plastic_export.cli import main as plastic
from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from joined.ports import free_ports

DATA = Path(__file__).parents[3] / "tests-integration" / "data" / "stdlib-llama"
PROCESSES, SECONDS, LONGEST = 2, 30.0, 300.0
INTERRUPTED = 5
UNMET = (
    "error: another process was lost at the start",
    "error: the other processes cannot be reached",
)
"""Before processes have met none can be named."""
PLAN = (
    *("--calibration", DATA / "calibration.txt", "--window", 64, "--windows", 64),
    *("--bits", 4, "--group-size", 64, "--bits-per-weight", 4.5, "--include", "*down*"),
)
COMMANDS = "plan", "compress"


class ForkEnd(NamedTuple):
    """How a process ended: its exit status, and its lines of ours on standard error."""

    status: int
    lines: list[str]


@dataclass
class Forks:
    """Processes that carry out one command together, or one alone.

    Attributes:
        pids: Their numbers by rank.
        folder: Where their streams and their list of hosts are.
        statuses: Of those that have ended, by rank.
    """

    pids: list[int]
    folder: Path
    statuses: dict[int, int]

    @classmethod
    def start(cls, count: int, words: Sequence[object], folder: Path) -> Forks:
        """Fork so many."""
        folder.mkdir(exist_ok=True)
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
        sys.stdout.flush()
        pids = list[int]()
        for rank in range(count):
            pid = os.fork()
            if pid == 0:
                joined = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} if count > 1 else {}
                _become(joined, [str(word) for word in words], folder / str(rank))
            pids.append(pid)
        return cls(pids, folder, {})

    def poll(self) -> bool:
        """Tell whether all have ended."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) == len(self.pids)

    def wait(self, seconds: float) -> float:
        """Wait for all to end, and end those that have not after a while; return the time."""
        begun = time.monotonic()
        while not self.poll() and time.monotonic() - begun < seconds:
            time.sleep(0.02)
        took = time.monotonic() - begun
        for rank, pid in enumerate(self.pids):
            if rank not in self.statuses:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return took

    def ended(self, rank: int) -> ForkEnd:
        """Return how one of them ended; status 99 where it had to be ended."""
        text = (self.folder / str(rank)).read_text()
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        return ForkEnd(self.statuses.get(rank, 99), lines)


def _become(environment: dict[str, str], words: list[str], stream: Path) -> None:
    """Be a process of the command; this does not return."""
    os.environ.update(environment)
    out = os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    status = 99
    try:
        plastic(words)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Killable(NamedTuple):
    """A command in a folder of its own.

    Attributes:
        words: The command.
        place: What it writes.
    """

    words: list[object]
    place: Path

    @classmethod
    def of(cls, command: str, folder: Path, plan: Path) -> Killable:
        """Make the folder ready."""
        folder.mkdir()
        file = folder / "plan.json"
        if command == "plan":
            return cls(["plan", DATA, *PLAN, "--out", file], file)
        for name in ("plan.json", "plan.grams.npz"):
            shutil.copy(plan / name, folder / name)
        out = folder / "out"
        return cls(["compress", DATA, out, "--plan", file], out)


def all_digests(folder: Path) -> dict[str, str]:
    """Digests of all that is in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


class Kill(NamedTuple):
    """What one kill led to.

    Attributes:
        command: The command.
        rank: The process that was killed.
        after: Seconds from the start.
        end: Seconds until the other had ended.
        resumed: The number of processes that went on.
        failures: What was not as it is to be.
    """

    command: str
    rank: int
    after: float
    end: float
    resumed: int
    failures: list[str]


def killed(
    command: str, whole: dict[str, str], seconds: float, rng: random.Random, folder: Path
) -> Kill | None:
    """Kill one of the processes at some moment, and go on; None where all had ended before."""
    work = Killable.of(command, folder / "work", folder.parent / "plan" / "work")
    rank, after, resumed = rng.randrange(PROCESSES), rng.uniform(0, seconds), rng.choice((1, 2))
    group = Forks.start(PROCESSES, work.words, folder / "first")
    begun = time.monotonic()
    while time.monotonic() - begun < after and not group.poll():
        time.sleep(0.005)
    if group.poll():
        return None
    if rank not in group.statuses:
        os.kill(group.pids[rank], signal.SIGKILL)
    end = group.wait(LONGEST)
    failures = list(_after_kill(group, rank, end))
    left = {name: digest for name, digest in all_digests(folder / "work").items() if name in whole}
    if work.place.exists() and left != whole:
        failures.append(f"half of {work.place.name} is there")
    is_there = work.place.exists()  # so that going on is refused
    again = Forks.start(resumed, work.words, folder / "again")
    again.wait(LONGEST)
    ends = [again.ended(number) for number in range(resumed)]
    if any(one.status for one in ends) and not is_there:
        failures.append(f"going on ended with {ends}")
    if all_digests(folder / "work") != whole:
        names = sorted(set(all_digests(folder / "work")) ^ set(whole))
        failures.append(f"other bytes or files at the end: {names}")
    return Kill(command, rank, after, end, resumed, failures)


def _after_kill(group: Forks, rank: int, seconds: float) -> list[str]:
    """Return what is wrong with the end of the others."""
    other = group.ended(1 - rank)
    if group.statuses.get(rank) == 0 or other.status == 0:
        return []  # it was done
    found = list[str]()
    if seconds > SECONDS:
        found.append(f"{seconds:.1f} s until the other had ended")
    named = f"error: process {rank} ({group.pids[rank]} on {socket.gethostname()})"
    lines = [line for number in range(PROCESSES) for line in group.ended(number).lines]
    if any(line.startswith(UNMET) for line in lines):
        return found
    if other.status != INTERRUPTED or [line.startswith(named) for line in lines] != [True]:
        found.append(f"the other ended with {other.status}: {lines}")
    return found


def undisturbed(command: str, folder: Path) -> tuple[dict[str, str], float]:
    """What a run that nobody disturbs leaves, and its seconds."""
    folder.mkdir()
    work = Killable.of(command, folder / "work", folder.parent / "plan" / "work")
    group = Forks.start(PROCESSES, work.words, folder / "first")
    seconds = group.wait(LONGEST)
    ends = [group.ended(rank) for rank in range(PROCESSES)]
    if any(one.status for one in ends):
        raise SystemExit(f"{command} fails undisturbed: {ends}")
    return all_digests(folder / "work"), seconds


def kills_table(kills: Sequence[Kill]) -> Table:
    """By command: how many, by whom, the slowest end, how many failed."""
    columns = "command", "kills", "of process 0", "slowest end, s", "gone on by one", "failures"
    table = Table(*columns, box=box.MARKDOWN)
    for command in COMMANDS:
        own = [kill for kill in kills if kill.command == command]
        table.add_row(
            command,
            str(len(own)),
            str(sum(kill.rank == 0 for kill in own)),
            f"{max((kill.end for kill in own), default=0.0):.1f}",
            str(sum(kill.resumed == 1 for kill in own)),
            f"{sum(bool(kill.failures) for kill in own)} of {len(own)}",
        )
    return table


def main() -> None:
    """Print every failure, then the table; exit 1 if there was one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # a plot is drawn after the work
    last = time.monotonic() + 60 * options.minutes
    rng, kills = random.Random(options.seed), list[Kill]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole = {command: undisturbed(command, folder / command) for command in COMMANDS}
        while len(kills) < options.moments and time.monotonic() < last:
            command = COMMANDS[len(kills) % len(COMMANDS)]
            own = Path(tempfile.mkdtemp(dir=folder))
            kill = killed(command, *whole[command], rng, own)
            shutil.rmtree(own)
            if kill is None:
                continue
            kills.append(kill)
            print(
                f"{len(kills)}: {command}, process {kill.rank} after {kill.after:.2f} s, the other "
                f"ended {kill.end:.1f} s later{''.join(f'; FAILED: {f}' for f in kill.failures)}",
                flush=True,
            )
    Console(width=200).print(kills_table(kills))
    sys.exit(1 if any(kill.failures for kill in kills) else 0)


if __name__ == "__main__":
    main()
