"""What several processes gain in calibration and pricing, and what they send each other.

    uv run tools/bench/joined/distributed.py                               the shipped checkpoint
    uv run tools/bench/joined/distributed.py --model DIR --text FILE       another one
    uv run tools/bench/joined/distributed.py --processes 1 2 --windows 32  less of it

Processes of one thread each, on this machine, joined by MLX's ring. Seconds of the clock mean
something on a machine that does nothing else and has a core for each of them. So the table also
has the critical path: the processor seconds of every process in every part, without those that
the ring spends on waiting, scheduled as the processes wait for each other. What a process sends is
counted where it is sent; "per Gram" is that of the calibration over the bytes of the file of Grams.
Beside both stands what ``plastic plan --dry-run`` foresees, from a trial in processor seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from plastic_export import Calibration, estimate_plan, plan_checkpoint
from plastic_export.estimate import measured_speed, pipelined
from plastic_runtime.distributed import Team, join
from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from joined.ports import free_ports

T = TypeVar("T")
DATA = Path(__file__).parents[3] / "tests-integration" / "data" / "stdlib-llama"
TARGET, MOST_SENT = 1.8, 1.1
AT_ONCE = 1e5
"""Gbit/s: the processor does not wait for the network."""


def thread_seconds(threads: Iterable[str]) -> float:
    """Processor seconds so far of threads of this process, on Linux."""
    ticks = 0
    for thread in threads:
        try:
            fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Meter:
    """Looks on while a plan is made: the ``track`` of one of the processes.

    Attributes:
        team: The processes.
        waiting: Threads of this one that wait for the others.
        marks: Seconds of work at the start, after every part of the calibration, and once prices
            are known; of the clock at the start, after the calibration and once they are.
        sent: Bytes that the calibration sent.
    """

    team: Team
    waiting: list[str]
    marks: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    sent: int = 0
    seen: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Note down the start."""
        self._mark()
        self.clock.append(time.perf_counter())

    def __call__(self, items: Sequence[T], description: str) -> Iterable[T]:
        """Note down what every block took, and when the next thing begins."""
        if description not in self.seen and description in ("pricing", "trying plans"):
            self.begin()
            self.sent = self.sent or self.team.sent
        self.seen.add(description)
        for item in items:
            if "wards" in description:
                self._mark()
            yield item
        if "wards" in description:
            self._mark()

    def _mark(self) -> None:
        self.marks.append(time.process_time() - thread_seconds(self.waiting))


def joined_process(settings: dict[str, Any]) -> None:
    """Calibrate and price as one of the processes; print one line of JSON."""
    before = set(os.listdir("/proc/self/task"))
    team = join()
    threads = set(os.listdir("/proc/self/task")) - before if team.size > 1 else set()
    meter = Meter(team, sorted(threads - {str(threading.get_native_id())}))
    file = Path(settings["folder"]) / "plan.json"
    asked: dict[str, Any] = {
        "calibration": Calibration(settings["text"], settings["window"], settings["windows"]),
        "budgets": [3.5],
    }
    team.gathered(None)
    meter.begin()
    plan_checkpoint(settings["model"], file, **asked, track=meter, team=team)
    predicted = estimate_plan(
        settings["model"],
        file.with_name("foreseen.json"),
        **asked,
        processes=team.size,
        gigabits=AT_ONCE,
        speed=measured_speed(time.process_time),
    )
    grams = file.with_suffix(".grams.npz")
    *parts, pricing = (b - a for a, b in pairwise(meter.marks))
    record = {
        "rank": team.rank,
        "wall": meter.clock[2] - meter.clock[0],
        "parts": parts,
        "pricing": pricing,
        "sent": meter.sent,
        "grams": grams.stat().st_size,
        "foreseen": predicted.phases,
        "foreseen_sent": max(machine.sends for machine in predicted.machines),
        "digest": hashlib.sha256(file.read_bytes() + grams.read_bytes()).hexdigest()[:12],
    }
    print(json.dumps(record), flush=True)


def joined_run(processes: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process printed, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        asked = json.dumps(settings | {"folder": folder})
        command = [sys.executable, __file__, "--child", asked]
        if processes > 1:
            launch = Path(sys.executable).with_name("mlx.launch")
            first = str(free_ports(processes)[0])
            options = ["--backend", "ring", "-n", str(processes), "--starting-port", first]
            command = [str(launch), *options, "--", *command]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(lines) != processes:
        raise SystemExit(done.stdout + done.stderr)
    return sorted(lines, key=lambda line: int(line["rank"]))


@dataclass
class JoinedRow:
    """What so many processes took, and what was foreseen; seconds, and bytes over the Grams'.

    Attributes:
        opening: Seconds until the first part of the calibration is finished.
        calibration: Seconds of the others.
        pricing: Seconds of the process that prices longest.
    """

    processes: int
    wall: float
    opening: float
    calibration: float
    pricing: float
    foreseen: dict[str, float]
    sent: float
    foreseen_sent: float
    digest: str

    @property
    def path(self) -> float:
        """The critical path."""
        return self.opening + self.calibration + self.pricing

    @property
    def foreseen_pricing(self) -> float:
        """What `pricing` was foreseen to be."""
        return self.foreseen["prices"] + self.foreseen["runs that correct them"]

    @classmethod
    def of(cls, lines: list[dict[str, Any]]) -> JoinedRow:
        """Put together what the processes printed."""
        row = [line["parts"] for line in reversed(lines)]  # the last process begins
        opening = max(parts.pop(0) for parts in row)
        grams, (digest,) = lines[0]["grams"], {line["digest"] for line in lines}
        return cls(
            len(lines),
            lines[0]["wall"],
            opening,
            pipelined(row, [0.0] * len(row[0])).seconds,
            max(line["pricing"] for line in lines),
            lines[0]["foreseen"],
            max(line["sent"] for line in lines) / grams,
            lines[0]["foreseen_sent"] / grams,
            digest,
        )


def distributed_table(rows: list[JoinedRow]) -> Table:
    """Processes, seconds, how much faster, what was sent, digests."""
    columns = "processes", "clock, s", "faster", "critical path, s", "faster", "opening"
    more = "calibration", "foreseen", "prices", "foreseen", "sent per Gram", "foreseen", "digest"
    table = Table(*columns, *more, box=box.MARKDOWN)
    for row in rows:
        figures = (
            f"{row.wall:.1f}",
            f"{rows[0].wall / row.wall:.2f}",
            f"{row.path:.1f}",
            f"{rows[0].path / row.path:.2f}",
            f"{row.opening:.1f}",
            f"{row.calibration:.1f}",
            f"{row.foreseen['calibration']:.1f}",
            f"{row.pricing:.1f}",
            f"{row.foreseen_pricing:.1f}",
            f"{row.sent:.3f}",
            f"{row.foreseen_sent:.3f}",
        )
        table.add_row(str(row.processes), *figures, row.digest)
    return table


def main() -> None:
    """Print the table; exit 1 if bytes differ or too much is sent."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", type=Path, default=DATA, help="a checkpoint")
    parser.add_argument("--text", type=Path, default=DATA / "calibration.txt")
    parser.add_argument("--window", type=int, default=128, help="tokens per window")
    parser.add_argument("--windows", type=int, default=256, help="windows")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        joined_process(json.loads(options.child))
        return
    settings = {
        "model": str(options.model.resolve()),
        "text": str(options.text.resolve()),
        "window": options.window,
        "windows": options.windows,
    }
    rows = [JoinedRow.of(joined_run(count, settings)) for count in options.processes]
    Console(width=200).print(distributed_table(rows))
    print(f"targets: {TARGET} times faster with 2, at most {MOST_SENT} sent per Gram")
    alike = len({row.digest for row in rows}) == 1
    if not alike or any(row.sent > MOST_SENT for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
