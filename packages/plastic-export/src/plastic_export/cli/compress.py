"""``plastic compress``: by rank with ``--keep``, by a plan with ``--plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from plastic_select import STRATEGIES
from plastic_select.rules import NEED_GRAM

from plastic_export.calibration.text import Calibration
from plastic_export.cli.console import (
    FOLDER,
    TEXT,
    Output,
    json_option,
    revision_option,
)
from plastic_export.cli.forms import FormsCommand, form_option, given_elsewhere
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.plan.budgets import Budget, parse_size
from plastic_export.reporting.compress import present_compressed, present_quantised

RANK, PLAN = ("rank",), ("plan",)
NEEDS_TEXT = " or ".join(NEED_GRAM)


@click.command(
    "compress",
    cls=FormsCommand,
    forms={
        "rank": "By rank (plastic compress SRC OUT --keep FRACTION)",
        "plan": "By a plan (plastic compress SRC OUT --plan FILE)",
    },
)
@click.argument("src")
@click.argument("out", type=FOLDER)
@form_option(
    ("rank", "plan"), "--keep", type=float, help="Fraction of the bytes of the matrices to keep."
)
@form_option(
    RANK,
    "--strategy",
    type=click.Choice(STRATEGIES),
    help="Rule that chooses the ranks; by default activation with --calibration, stable without.",
)
@form_option(
    RANK,
    "--format",
    "format_",
    type=click.Choice(["factored", "dense"]),
    default="factored",
    show_default=True,
    help="factored: two thin matrices each, needs --trust-remote-code. dense: their product, loads "
    "everywhere and saves no bytes.",
)
@form_option(RANK, "--calibration", type=TEXT, help=f"Text for --strategy {NEEDS_TEXT}.")
@form_option(
    RANK,
    "--window",
    type=click.IntRange(2),
    default=Calibration.window,
    show_default=True,
    help="Tokens in a window of the text.",
)
@form_option(
    RANK,
    "--windows",
    type=click.IntRange(1),
    default=Calibration.windows,
    show_default=True,
    help="Windows of the text at most.",
)
@form_option(RANK, "--include", multiple=True, help="Pattern of matrices to take; repeatable.")
@form_option(RANK, "--exclude", multiple=True, help="Pattern of matrices to leave; repeatable.")
@form_option(PLAN, "--plan", "plan_file", type=TEXT, help="File that `plastic plan` wrote.")
@form_option(PLAN, "--bits-per-weight", type=float, help="Which budget of the plan.")
@form_option(PLAN, "--size", help="Which budget of the plan, such as 3MB.")
@click.option("--exact", is_flag=True, help="Keep what `plastic restore` needs for every bit.")
@click.option(
    "--force",
    is_flag=True,
    help="Replace OUT if it is an earlier output, and what other options left unfinished.",
)
@revision_option
@json_option
def compress_command(
    src: str,
    out: Path,
    keep: float | None,
    strategy: str | None,
    format_: Any,
    calibration: Path | None,
    window: int,
    windows: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    plan_file: Path | None,
    bits_per_weight: float | None,
    size: str | None,
    as_json: bool,
    **writing: Any,
) -> None:
    """Write a compressed copy of the checkpoint SRC to the folder OUT.

    By rank, every matrix becomes the factors of a lower rank; what is left out sleeps in OUT. By a
    plan of `plastic plan`, every matrix gets the bits and the rank that are worth their bytes.
    A run that was cut goes on when it is started again, to the same bytes.
    """
    output = Output(as_json)
    writing["track"] = output.track
    if plan_file is not None:
        _check_form("plan", "--plan has decided; drop {}")
        budget = _named_budget(bits_per_weight, size, keep)
        output.show(present_quantised(execute_plan(src, out, plan_file, budget=budget, **writing)))
        return
    _check_form("rank", "{} names a budget of a plan; give the --plan, too")
    if keep is None:
        raise click.UsageError("give --keep, or a --plan and perhaps which of its budgets")
    result = compress(
        src,
        out,
        keep=keep,
        strategy=strategy,
        format=format_,
        calibration=Calibration(calibration, window, windows) if calibration else None,
        include=include,
        exclude=exclude,
        **writing,
    )
    output.show(present_compressed(result, format_))


def _check_form(form: str, message: str) -> None:
    """Refuse an option of another form; ``message`` has a place for its name."""
    if option := given_elsewhere(click.get_current_context(), form):
        raise click.UsageError(message.format(option))


def _named_budget(
    bits_per_weight: float | None, size: str | None, keep: float | None
) -> str | None:
    """Which budget of a plan is meant; None where none is named."""
    named = [Budget("bits_per_weight", bits_per_weight)] if bits_per_weight is not None else []
    try:
        named += [Budget("size", parse_size(size))] if size is not None else []
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    named += [Budget("keep", keep)] if keep is not None else []
    if len(named) > 1:
        raise click.UsageError("--bits-per-weight, --size and --keep each name a budget; give one")
    return str(named[0]) if named else None
