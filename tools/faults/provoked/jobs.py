"""Runs that are cut: how to start one, how to go on with it, and what it must have left."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from provoked.checkpoints import strays, tiny, trained_copy, tree
from provoked.child import Ended, command, in_child


@dataclass(frozen=True)
class Job:
    """A command that writes a folder, and what an undisturbed run of it writes.

    Attributes:
        name: The name in the table.
        words: The command but for the folder.
        place: Folder in which the output is to lie.
        expected: Digest of every file of the output.
        seconds: How long it takes undisturbed.
    """

    name: str
    words: Sequence[str]
    place: Path
    expected: dict[str, str]
    seconds: float

    @property
    def out(self) -> Path:
        """The output."""
        return self.place / "out"

    def all_words(self) -> list[str]:
        """The whole command."""
        return [*self.words[:2], str(self.out), *self.words[2:]]

    def resumed(self) -> Ended:
        """Go on with it to its end."""
        return in_child(command(*self.all_words()))

    def problems(self, ended: Ended) -> list[str]:
        """Return what is wrong after its end."""
        if ended.status:
            return [f"exit {ended.status}: {ended.printed[-300:]}"]
        found = [f"left {name}" for name in strays(self.place, {"out"})]
        there = tree(self.out)
        names = {*there, *self.expected}
        return found + [
            f"{name} differs"
            for name in sorted(names)
            if there.get(name) != self.expected.get(name)
        ]


def low_rank(work: Path, *, small: bool = False) -> Job:
    """``plastic compress --keep 0.5`` of the trained checkpoint, or of a tiny one."""
    source = tiny(work / "source") if small else trained_copy(work / "source")
    words = ["compress", str(source), "--keep", "0.5", "--format", "dense" if small else "factored"]
    return _job("compress --keep", words, work)


def by_plan(work: Path) -> Job:
    """``plastic compress --plan`` of four matrices of the trained checkpoint, with corrections."""
    source, plan = trained_copy(work / "source"), work / "plan.json"
    text = source / "calibration.txt"
    options = ["--bits-per-weight", "4.5", "--format", "corrected", "--windows", "4"]
    options += ["--include", "*layers.0.self_attn*"]
    made = in_child(
        command("plan", source, "--calibration", text, "--window", "64", "--out", plan, *options),
        600,
    )
    if made.status:
        raise RuntimeError(made.printed)
    return _job("compress --plan", ["compress", str(source), "--plan", str(plan)], work)


def with_old_output(job: Job) -> Path:
    """Put an earlier output of other options where the job's is to be; a copy of its place."""
    words = [*job.words[:2], str(job.out), "--keep", "0.7", *job.words[4:]]
    ended = in_child(command(*words))
    if ended.status:
        raise RuntimeError(ended.printed)
    old = job.place.parent / "old"
    shutil.copytree(job.place, old)
    return old


def _job(name: str, words: list[str], work: Path) -> Job:
    place = work / "place"
    place.mkdir()
    first = Job(name, words, place, {}, 0.0)
    ended = in_child(command(*first.all_words()), 600)
    if ended.status:
        raise RuntimeError(ended.printed)
    expected = tree(first.out)
    (work / "whole").mkdir()
    first.out.rename(work / "whole" / "out")
    return Job(name, words, place, expected, ended.seconds)
