"""``plastic resize``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from plastic_export.adapters.adapter import Form
from plastic_export.cli.console import Output
from plastic_export.cli.options import FOLDER, json_option
from plastic_export.cli.rank_options import rank_goal_options
from plastic_export.reporting.adapters.reshaped import present_reshaped
from plastic_export.reshaping.rank_choice import RankGoal
from plastic_export.reshaping.resizing import resize


@click.command("resize", short_help="Cut an adapter down to a size.")
@click.argument("adapter", type=FOLDER)
@click.argument("out", type=FOLDER)
@rank_goal_options
@click.option("--to", "form", type=click.Choice(get_args(Form)), help="By default as it came.")
@click.option("--uniform", is_flag=True, help="One rank for all in the form of PEFT too.")
@json_option()
def resize_command(
    adapter: Path,
    out: Path,
    max_size: int | None,
    energy: float | None,
    rank: int | None,
    form: Form | None,
    uniform: bool,
    as_json: bool,
) -> None:
    """Cut ADAPTER down to --max-size, --energy or --rank, written to the folder OUT.

    ADAPTER is of mlx-lm, of PEFT, of kohya's scripts, or a RUN. Ranks of all layers follow from
    one budget, and what is lost of the adapter is stated.
    """
    output = Output(as_json)
    goal = RankGoal(max_bytes=max_size, energy=energy, rank=rank)
    done = resize(adapter, out, goal, form=form, uniform=uniform, track=output.track)
    output.show(present_reshaped(done))
