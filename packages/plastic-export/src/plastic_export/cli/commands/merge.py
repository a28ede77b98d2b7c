"""``plastic merge``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from plastic_export.adapters.adapter import Form
from plastic_export.cli.console import Output
from plastic_export.cli.options import FOLDER, json_option, revision_option
from plastic_export.cli.rank_options import rank_goal_options
from plastic_export.reporting.adapters.merged import present_merged
from plastic_export.reporting.adapters.reshaped import present_reshaped
from plastic_export.reshaping.adding import merge
from plastic_export.reshaping.into_base import merge_into
from plastic_export.reshaping.rank_choice import RankGoal


def _weights(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(float(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} must be numbers such as 0.5,0.5") from None


@click.command("merge", short_help="Add adapters up, or to their base.")
@click.argument("adapters", type=FOLDER, nargs=-1, required=True)
@click.argument("out", type=FOLDER)
@click.option("--weights", callback=_weights, help="A number for each, such as 0.5,0.5; else 1.")
@rank_goal_options
@click.option("--to", "form", type=click.Choice(get_args(Form)), help="By default as they came.")
@click.option("--uniform", is_flag=True, help="One rank for all in the form of PEFT too.")
@click.option("--into", metavar="BASE", help="Folder or Hub id to add them to: OUT is a model.")
@click.option("--dequantize", is_flag=True, help="Store changed matrices of BASE dense.")
@revision_option()
@json_option()
def merge_command(
    adapters: tuple[Path, ...],
    out: Path,
    weights: tuple[float, ...] | None,
    max_size: int | None,
    energy: float | None,
    rank: int | None,
    form: Form | None,
    uniform: bool,
    into: str | None,
    dequantize: bool,
    revision: str | None,
    as_json: bool,
) -> None:
    """Write the sum of ADAPTERS to OUT, exact or cut down; or, with --into, add them to BASE.

    Without --max-size, --energy and --rank ranks add up. A quantised BASE is rounded anew, and
    what that loses is stated.
    """
    output, cut = Output(as_json), (max_size, energy, rank)
    is_cut = any(number is not None for number in cut)
    if into is None:
        if dequantize or revision is not None:
            raise click.UsageError("--dequantize and --revision belong to --into BASE")
        goal = RankGoal(max_bytes=max_size, energy=energy, rank=rank) if is_cut else None
        done = merge(
            adapters,
            out,
            weights=weights,
            goal=goal,
            form=form,
            uniform=uniform,
            track=output.track,
        )
        output.show(present_reshaped(done))
        return
    if is_cut or form is not None or uniform:
        reason = "--max-size, --energy, --rank, --to and --uniform are for an adapter"
        raise click.UsageError(f"{reason}, and --into makes a model")
    merged = merge_into(
        adapters,
        into,
        out,
        weights=weights,
        dequantize=dequantize,
        revision=revision,
        track=output.track,
    )
    output.show(present_merged(merged))
