"""Print what commands say beforehand beside what they then take: time, memory, disk.

Each command runs in a process of its own. The folder's free disk before the command, less its
least while it runs, is what it takes of the disk; others should not write there meanwhile.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SAID = re.compile(r"about ([\d.]+) (s|min|h), ([\d.]+) GB of memory, ([\d.]+) GB of disk")
SECONDS = {"s": 1, "min": 60, "h": 3600}
WORDS = {
    "evaluate": "{source} --reference {source} --text {text} --windows {n}",
    "plan": "{source} --calibration {text} --windows {n} --bits-per-weight 3.5 "
    "--out {folder}/plan.json",
    "compress": "{source} {folder}/out --plan {folder}/plan.json",
    "heal": "{folder}/out --reference {source} --calibration {text} --windows {n} --steps 4 "
    "--out {folder}/healed",
    "train": "{source} --data {folder} --out {folder}/run --steps 4 --window 256",
}
EVERY = 0.2  # seconds between two looks at the disk


class Row(NamedTuple):
    """What one command said and took; seconds and bytes."""

    command: str
    said: tuple[float, float, float] | None
    took: tuple[float, float, float]
    cpu: float


def watched_command(words: list[str], folder: Path) -> Row:
    """Run a command of ``plastic`` and watch it."""
    before = shutil.disk_usage(folder).free
    started, least = time.perf_counter(), before
    command = [sys.executable, "-c", RUN, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        while p.poll() is None:
            least = min(least, shutil.disk_usage(folder).free)
            time.sleep(EVERY)
        out, err = p.communicate()
    if p.returncode:
        raise SystemExit(err)
    seconds = time.perf_counter() - started
    found = SAID.search(err)
    said = None
    if found:
        said = (float(found[1]) * SECONDS[found[2]], 1e9 * float(found[3]), 1e9 * float(found[4]))
    *_, cpu, peak = map(float, out.rstrip().splitlines()[-2:])
    return Row(words[0], said, (seconds, peak, float(before - least)), cpu)


RUN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from plastic_export.cli.command import main
from meters import peak_resident
try:
    main(sys.argv[1:])
except SystemExit as ended:
    if ended.code:
        raise
import resource
unit = 1 if sys.platform == "darwin" else 1024
own, beside = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(sum(part.ru_utime + part.ru_stime for part in (own, beside)))
worker = beside.ru_maxrss * unit if "compress" in sys.argv else 0  # else a copy of this process
print(peak_resident() + worker)
"""


def main() -> None:
    """Run what was asked for, and print a line per command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--commands", default="evaluate,plan,compress,heal,train")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in arguments.commands.split(","):
            print(row_line(watched_command(words_of(name, arguments, folder), folder)), flush=True)


def words_of(name: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Return the command line of a command; each builds on those before it."""
    rows = [f'{{"text": "{line}"}}' for line in training_rows(arguments.text)]
    for part in ("train", "valid"):
        (folder / f"{part}.jsonl").write_text("\n".join(rows))
    words = WORDS[name].format(
        source=arguments.source, text=arguments.text, n=arguments.windows, folder=folder
    )
    return [name, *words.split()]


def training_rows(text: Path) -> list[str]:
    """Return rows of a few hundred words without what JSON would have to escape."""
    words = re.findall(r"\w+", text.read_text(encoding="utf-8"))
    return [" ".join(words[i : i + 300]) for i in range(0, min(len(words), 6000), 300)]


def row_line(row: Row) -> str:
    """Write a row: said, took, ratio."""
    seconds, memory, disk = row.took
    took = f"{seconds:8.1f} s ({row.cpu:.1f} of CPU) {memory / 1e9:6.2f} GB {disk / 1e9:6.2f} GB"
    if row.said is None:
        return f"{row.command:10} said nothing; took {took}"
    said = f"{row.said[0]:8.1f} s {row.said[1] / 1e9:6.2f} GB {row.said[2] / 1e9:6.2f} GB"
    return f"{row.command:10} said {said}; took {took}; time {row.said[0] / seconds:.2f} of it"


if __name__ == "__main__":
    main()
