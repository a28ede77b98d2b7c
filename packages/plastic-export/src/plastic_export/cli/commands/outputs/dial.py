"""``plastic dial``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from plastic_core.files import FormatError
from plastic_runtime.dialling import MANIFEST

from plastic_export.cli.console import Output
from plastic_export.cli.forms import FormOption, FormsCommand, check_form
from plastic_export.cli.options import (
    FOLDER,
    budget_option,
    check_option,
    force_option,
    json_option,
    one_budget,
    size_option,
)
from plastic_export.dialling.writing import dial
from plastic_export.plan.budgets import Budget
from plastic_export.reporting.adapters.dialled import present_dialled_run
from plastic_export.reporting.dial import present_dialled
from plastic_export.training.sizes.dial_run import dial_run, is_dialled_run

OUTPUT: dict[str, Any] = {"cls": FormOption, "forms": ("output",)}
RUN: dict[str, Any] = {"cls": FormOption, "forms": ("run",)}


@click.command(
    "dial",
    cls=FormsCommand,
    forms={
        "output": "What plastic compress wrote (plastic dial SRC OUT --size 3MB)",
        "run": "A finished run of plastic train (plastic dial SRC OUT --max-size 300KB)",
    },
    short_help="Turn a compressed folder, or a run, to another size.",
)
@click.argument("src", type=FOLDER)
@click.argument("out", type=FOLDER)
@budget_option("bits_per_weight", help="The size: ", **OUTPUT)
@budget_option("size", help="The size: ", **OUTPUT)
@budget_option("keep", help="The size: ", **OUTPUT)
@click.option("--full", is_flag=True, help="Wake everything that SRC stores.", **OUTPUT)
@click.option(
    "--park", is_flag=True, help="Let what is cut sleep in OUT, to dial it up again.", **OUTPUT
)
@check_option(**OUTPUT)
@force_option("OUT if it is an earlier output", **OUTPUT)
@size_option("--max-size", help="Bytes of each adapter's file at most, such as 300KB.", **RUN)
@json_option()
def dial_command(
    src: Path,
    out: Path,
    bits_per_weight: Budget | None,
    size: Budget | None,
    keep: Budget | None,
    full: bool,
    park: bool,
    check: bool,
    force: bool,
    max_size: int | None,
    as_json: bool,
) -> None:
    """Write SRC, a compressed folder or a finished run, at another size to the folder OUT.

    It needs nothing but SRC: the components that are worth their bytes stay, bit for bit. With
    --park the others of a compressed folder sleep in OUT, and dialling OUT up wakes the same bits;
    the formats corrected and factored have components. A run stays as it is, and OUT gets adapters
    for mlx-lm and PEFT.
    """
    output = Output(as_json)
    if is_dialled_run(src):
        check_form("run", "{} is for a compressed folder, and SRC is a run; give --max-size")
        if max_size is None:
            raise click.UsageError("give --max-size, as SRC is a run")
        output.show(present_dialled_run(dial_run(src, out, max_size)))
        return
    _check_kind(src)
    check_form("output", "{} is for a run, and SRC is a compressed folder; give --size")
    budget = one_budget(bits_per_weight, size, keep)
    if full == (budget is not None):
        raise click.UsageError("give one of --bits-per-weight, --size, --keep and --full")
    done = dial(src, out, budget, park=park, force=force, check=check, track=output.track)
    output.show(present_dialled(done))


def _check_kind(src: Path) -> None:
    """Refuse what is neither."""
    if not src.exists():
        raise FormatError.about(src, "there is no such folder", "check the path")
    if not (src / MANIFEST).is_file():
        reason = "it is neither a compressed folder nor a run"
        remedy = "name what `plastic compress` or `plastic train` wrote"
        raise FormatError.about(src, reason, remedy)
