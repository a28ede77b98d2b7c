"""``plastic dial``."""

from __future__ import annotations

from pathlib import Path

import click

from plastic_export.cli.console import Output
from plastic_export.cli.options import (
    FOLDER,
    budget_option,
    check_option,
    force_option,
    json_option,
    one_budget,
)
from plastic_export.dialling.writing import dial
from plastic_export.plan.budgets import Budget
from plastic_export.reporting.dial import present_dialled


@click.command("dial", short_help="Turn a compressed folder to another size.")
@click.argument("src", type=FOLDER)
@click.argument("out", type=FOLDER)
@budget_option("bits_per_weight", help="The size: ")
@budget_option("size", help="The size: ")
@budget_option("keep", help="The size: ")
@click.option("--full", is_flag=True, help="Wake everything that SRC stores.")
@click.option("--park", is_flag=True, help="Let what is cut sleep in OUT, to dial it up again.")
@check_option()
@force_option("OUT if it is an earlier output")
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
    as_json: bool,
) -> None:
    """Write SRC, a compressed folder, at another size to the folder OUT.

    It needs nothing but SRC: the components that are worth their bytes stay, bit for bit. With
    --park the others sleep in OUT, and dialling OUT up wakes the same bits. The formats corrected
    and factored have components.
    """
    budget = one_budget(bits_per_weight, size, keep)
    if full == (budget is not None):
        raise click.UsageError("give one of --bits-per-weight, --size, --keep and --full")
    output = Output(as_json)
    done = dial(src, out, budget, park=park, force=force, check=check, track=output.track)
    output.show(present_dialled(done))
