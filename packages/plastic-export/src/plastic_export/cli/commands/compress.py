"""``plastic compress``: by rank with ``--keep``, by a plan with ``--plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from plastic_select import STRATEGIES
from plastic_select.rules import NEED_GRAM

from plastic_export.calibration.text import Calibration
from plastic_export.cli.console import Output
from plastic_export.cli.forms import FormOption, FormsCommand, check_form
from plastic_export.cli.joined import current_team
from plastic_export.cli.options import (
    FOLDER,
    TEXT,
    budget_option,
    calibration_option,
    check_option,
    exclude_option,
    force_option,
    format_option,
    include_option,
    json_option,
    memory_option,
    one_budget,
    range_option,
    revision_option,
    tokenizer_option,
    window_option,
    windows_option,
)
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.compression.nested import SizeRange
from plastic_export.format.table import RANK_FORMATS
from plastic_export.plan.budgets import Budget
from plastic_export.reporting.compress import present_by_plan, present_by_rank

RANK: dict[str, Any] = {"cls": FormOption, "forms": ("rank",)}
PLAN: dict[str, Any] = {"cls": FormOption, "forms": ("plan",)}
BOTH: dict[str, Any] = {"cls": FormOption, "forms": ("rank", "plan")}
NEEDS_TEXT = " or ".join(NEED_GRAM)


@click.command(
    "compress",
    cls=FormsCommand,
    forms={
        "rank": "By rank (plastic compress SRC OUT --keep FRACTION)",
        "plan": "By a plan (plastic compress SRC OUT --plan FILE)",
    },
    short_help="Write a smaller copy of a checkpoint.",
)
@click.argument("src")
@click.argument("out", type=FOLDER)
@click.option("--plan", "plan_file", type=TEXT, help="File that `plastic plan` wrote.", **PLAN)
@budget_option("bits_per_weight", help="The plan's budget of that: ", **PLAN)
@budget_option("size", help="The plan's budget of that: ", **PLAN)
@budget_option("keep", help="What stays awake, or the plan's budget of that: ", **BOTH)
@range_option(**PLAN)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    help="Rule that chooses the ranks; by default activation with --calibration, stable without.",
    **RANK,
)
@format_option(RANK_FORMATS, "factored", **RANK)
@calibration_option(help=f"Text for --strategy {NEEDS_TEXT}", **RANK)
@window_option(**RANK)
@windows_option(**RANK)
@tokenizer_option(**RANK)
@include_option(**RANK)
@exclude_option(**RANK)
@click.option("--exact", is_flag=True, help="Keep what `plastic restore` needs for every bit.")
@check_option()
@memory_option()
@force_option("OUT if it is an earlier output, and what other options left unfinished")
@revision_option()
@json_option()
def compress_command(
    src: str,
    out: Path,
    keep: Budget | None,
    strategy: str | None,
    format_: Any,
    calibration: Path | None,
    window: int,
    windows: int,
    tokenizer: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    plan_file: Path | None,
    bits_per_weight: Budget | None,
    size: Budget | None,
    range_: SizeRange | None,
    as_json: bool,
    **writing: Any,
) -> None:
    """Write a compressed copy of the checkpoint SRC to the folder OUT.

    By rank, every matrix becomes the factors of a lower rank; what is left out sleeps in OUT. By a
    plan of `plastic plan`, every matrix gets the bits and the rank that are worth their bytes.
    Before OUT is published, one window of text runs through it and through SRC. A run that was cut
    goes on when it is started again, to the same bytes.
    """
    output = Output(as_json)
    writing |= {"track": output.track, "say": output.say}
    if plan_file is not None:
        check_form("plan", "--plan has decided; drop {}")
        budget = one_budget(bits_per_weight, size, keep)
        if budget is not None and range_ is not None:
            raise click.UsageError("--range is in place of a budget; give one of them")
        named = None if budget is None else str(budget)
        team = current_team()
        done = execute_plan(src, out, plan_file, budget=named, sizes=range_, team=team, **writing)
        if output.leads:
            output.show(present_by_plan(done))
        return
    check_form("rank", "{} names a budget of a plan; give the --plan, too")
    if current_team().size > 1:
        raise click.UsageError("by rank it runs in one process; start it without mlx.launch")
    if keep is None:
        raise click.UsageError("give --keep, or a --plan and perhaps which of its budgets")
    reads = calibration is not None or strategy in NEED_GRAM
    if not reads:
        _check_text_options()
    result = compress(
        src,
        out,
        keep=keep.value,
        strategy=strategy,
        format=format_,
        calibration=Calibration(calibration, window, windows, tokenizer) if reads else None,
        include=include,
        exclude=exclude,
        **writing,
    )
    output.show(present_by_rank(result))


def _check_text_options() -> None:
    """Refuse options about a text where there is none."""
    context = click.get_current_context()
    for name in ("window", "windows", "tokenizer"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is about a text; name one with --calibration")
