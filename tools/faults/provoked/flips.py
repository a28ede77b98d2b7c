"""Single bits that turn over in what was written."""

from __future__ import annotations

import random
from pathlib import Path

from plastic_core.files import FormatError, read_header
from plastic_export import verify

from provoked.jobs import Job, by_plan, low_rank
from provoked.outcome import Outcome


def flips(quick: bool, work: Path) -> list[Outcome]:
    """A random bit of a finished output turns over; ``plastic verify`` must name its place."""
    if quick:
        return [_flipped(low_rank(work, small=True), 40)]
    return [_flipped(make(work / make.__name__), 200) for make in (low_rank, by_plan)]


def _flipped(job: Job, count: int) -> Outcome:
    outcome = Outcome(
        f"one bit of an output of {job.name} turns over",
        "verify names the file, and the tensor if it lies in one",
    )
    out = job.place.parent / "whole" / "out"
    card = out / "README.md"  # for people, who may edit it: no digest holds it
    files = sorted(path for path in out.rglob("*") if path.is_file() and path != card)
    rng = random.Random(1)
    with outcome.timed():
        for number in range(count):
            # every file once, then by size: most bytes belong to tensors
            sizes = [path.stat().st_size for path in files]
            path = files[number] if number < len(files) else rng.choices(files, sizes)[0]
            if not path.stat().st_size:
                continue
            place, bit = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
            _flip(path, place, bit)
            problems = _problems(path, place, out)
            _flip(path, place, bit)
            outcome.count(problems, f"{path.name}, byte {place}, bit {bit}")
            outcome.remark("in tensors" if _tensor(path, place) else "elsewhere")
        if defects := verify(out):
            outcome.count(defects, "the output as it was")
    return outcome


def _problems(path: Path, place: int, out: Path) -> list[str]:
    try:
        defects = verify(out)
    except FormatError as error:
        defects = [str(error)]
    tensor = _tensor(path, place)
    name = f"{path}: tensor {tensor!r}" if tensor else str(path)
    if not defects:
        return ["not found"]
    return [] if all(line.startswith(name) for line in defects) else defects


def _tensor(path: Path, place: int) -> str | None:
    """The tensor that owns a byte; flips of its bits leave the header as it is."""
    if path.suffix != ".safetensors":
        return None
    try:
        tensors = read_header(path).tensors.values()
    except FormatError:
        return None
    return next((t.name for t in tensors if t.start <= place < t.stop), None)


def _flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ bit]))
