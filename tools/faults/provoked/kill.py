"""Processes killed, interrupted or terminated at random moments, and gone on with."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from plastic_export.cli import DONE

from provoked.checkpoints import tree
from provoked.child import Child, command
from provoked.jobs import Job, by_plan, low_rank
from provoked.outcome import Outcome


def kill(quick: bool, work: Path) -> list[Outcome]:
    """kill -9 while compressing by rank; some of the runs that go on are killed again."""
    return [_killed(low_rank(work, small=True), 8 if quick else 200)]


def killplan(quick: bool, work: Path) -> list[Outcome]:
    """The same while a plan is carried out."""
    return [_killed(by_plan(work), 4 if quick else 200)]


def stop(quick: bool, work: Path) -> list[Outcome]:
    """Ctrl-C and SIGTERM."""
    job = low_rank(work, small=True)
    return [
        _stopped(job, number, name, 4 if quick else 20)
        for number, name in ((signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"))
    ]


def _killed(job: Job, points: int) -> Outcome:
    outcome = Outcome(
        f"kill -9 during {job.name}",
        "goes on to the same bytes; nothing left over; source untouched",
    )
    rng = random.Random(0)
    source = tree(Path(job.words[1]))
    with outcome.timed():
        for point in range(points):
            outcome.remark("kills", _kill_until(job, rng))
            ended = job.resumed()
            problems = job.problems(ended)
            if tree(Path(job.words[1])) != source:
                problems.append("the source changed")
            outcome.count(problems, f"point {point}")
            _empty(job.place)
    return outcome


def _kill_until(job: Job, rng: random.Random) -> int:
    """Kill the job once, and again in a third of the cases; how often that came in time."""
    kills = 0
    while True:
        child = Child(command(*job.all_words()))
        time.sleep(rng.uniform(0, job.seconds))
        child.send(signal.SIGKILL)
        kills += child.wait().status == -signal.SIGKILL
        if rng.random() > 1 / 3:
            return kills


def _stopped(job: Job, number: int, name: str, points: int) -> Outcome:
    outcome = Outcome(f"{name} during {job.name}", "exit 5, one line; goes on to the same bytes")
    rng = random.Random(number)
    with outcome.timed():
        for point in range(points):
            child = Child(command(*job.all_words()))
            time.sleep(rng.uniform(0.05, 0.9) * job.seconds)
            child.send(number)
            ended = child.wait()
            problems = []
            if ended.status == 0 or (ended.status == 5 and DONE in ended.printed):
                outcome.remark("came too late")
            elif ended.status != 5 or not ended.printed.lstrip().startswith("error: interrupted; "):
                problems.append(f"exit {ended.status}: {ended.printed[-300:]}")
            elif "goes on with it" in ended.printed:
                outcome.remark("with something to go on with")
            outcome.count(problems + job.problems(job.resumed()), f"point {point}")
            _empty(job.place)
    return outcome


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
