"""The table of the zoo."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from transformers import logging

from zoo.building import CONFIGS, forms_of
from zoo.chain import CELLS, run_row
from zoo.running import FAILED, LEFT_OUT, REFUSED, Outcome
from zoo.skipped import SKIPPED

Key = tuple[str, str]
"""Type and form."""
Outcomes = dict[str, Outcome]
"""What came of every cell, by name."""
WIDTH = 1 + max(map(len, CELLS))


@click.command()
@click.option("--types", default="", help="Model types, such as llama,qwen2; else all.")
@click.option("--forms", default="", help="Forms to run, such as mlx,published; else all.")
@click.option("--cells", default=",".join(CELLS), show_default=True, help="Cells to run.")
@click.option("--jobs", default=1, show_default=True, help="Rows to run side by side.")
def print_table(types: str, forms: str, cells: str, jobs: int) -> None:
    """Print what every command makes of every model type; exit with 1 if a cell fails."""
    if unknown := {*filter(None, types.split(","))} - CONFIGS.keys():
        raise click.BadParameter(f"no rows for {', '.join(sorted(unknown))}")
    begun = time.monotonic()
    refusals: dict[str, int] = {}
    failures: list[str] = []
    click.echo(f"{'type':22}{'form':11}" + "".join(f"{name:{WIDTH}}" for name in CELLS))
    named = types.split(",") if types else sorted(CONFIGS)
    chosen = rows(named, forms.split(",") if forms else [])
    for (model_type, form), outcomes in run_side_by_side(chosen, cells.split(","), jobs):
        words = "".join(f"{short(one, refusals):{WIDTH}}" for one in outcomes.values())
        seconds = sum(one.seconds for one in outcomes.values())
        click.echo(f"{model_type:22}{form:11}{words}{seconds:4.0f} s")
        failures += failed(model_type, form, outcomes)
    show_notes(refusals, failures)
    click.echo(f"in all {time.monotonic() - begun:.0f} s")
    sys.exit(bool(failures))


def run_side_by_side(
    rows: list[Key], cells: list[str], jobs: int
) -> Iterator[tuple[Key, Outcomes]]:
    """Run rows in processes of their own, and yield what came of each, in order.

    A row that ends its process runs again alone, and the rows behind it in new processes.
    """
    while rows:
        with processes(jobs) as pool:
            futures = [pool.submit(run, row, cells) for row in rows]
            for row, future in zip(rows, futures, strict=True):
                try:
                    yield row, future.result()
                except BrokenProcessPool:
                    yield row, run_alone(row, cells)
                    break
        rows = rows[1 + rows.index(row) :]


def run_alone(row: Key, cells: list[str]) -> Outcomes:
    """Run a row in a process of its own; if that ends, every cell has failed."""
    try:
        with processes(1) as pool:
            return pool.submit(run, row, cells).result()
    except BrokenProcessPool:
        ended = Outcome(FAILED, "the process ended")
        return {name: ended if name in cells else Outcome(LEFT_OUT) for name in CELLS}


def processes(jobs: int) -> ProcessPoolExecutor:
    """Return a pool of processes, which start anew, as MLX wants it."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def run(row: Key, cells: list[str]) -> Outcomes:
    """Run a row of a type and a form in a folder of its own."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    with TemporaryDirectory() as folder:
        return run_row(*row, Path(folder) / "row", cells)


def rows(types: Iterable[str], forms: list[str]) -> list[Key]:
    """Return the rows to run: every type in the forms that it has."""
    return [(name, form) for name in types for form in forms_of(name) if form in forms or not forms]


def short(outcome: Outcome, refusals: dict[str, int]) -> str:
    """Return the word for a cell; a refusal is a number, under which its line is kept."""
    if outcome.status != REFUSED:
        return outcome.status
    return f"({refusals.setdefault(outcome.line, len(refusals) + 1)})"


def failed(model_type: str, form: str, outcomes: dict[str, Outcome]) -> list[str]:
    """Return a line for every cell that failed, by name."""
    return [
        f"FAIL {model_type} {form} {name}: {one.line}"
        for name, one in outcomes.items()
        if one.status == FAILED
    ]


def show_notes(refusals: dict[str, int], failures: list[str]) -> None:
    """Print the lines of all refusals and failures, and the types without a row."""
    click.echo()
    for line, number in refusals.items():
        click.echo(f"({number}) {line}")
    for reason in dict.fromkeys(SKIPPED.values()):
        names = [name for name, its in SKIPPED.items() if its == reason]
        click.echo(f"no row for {', '.join(names)}: {reason}")
    for line in failures:
        click.echo(line)
