"""``plastic plan``, and what ``plastic compress`` does with its plan."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from plastic_export import losstables, planning, quantised
from plastic_export.calibrate import Calibration
from plastic_export.console import FOLDER, TEXT, Output, json_option, revision_option


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    """``"3, 3.5"`` as ``(3.0, 3.5)``."""
    try:
        numbers = tuple(float(word) for word in value.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if not numbers:
        raise click.BadParameter(f"{value!r} must be numbers such as 3,3.5,4.5")
    return numbers


@click.command()
@click.argument("src")
@click.option("--calibration", type=TEXT, required=True, help="Text to measure the loss on.")
@click.option(
    "--bits-per-weight",
    "budgets",
    callback=_numbers,
    default="3,3.5,4.5",
    show_default=True,
    help="Budgets: bits on disk per entry of the matrices, scales counted.",
)
@click.option(
    "--out", "file", type=FOLDER, default="plan.json", show_default=True, help="Plan to write."
)
@click.option("--window", type=click.IntRange(2), default=256, show_default=True, help="Tokens.")
@click.option("--windows", type=click.IntRange(1), default=128, show_default=True, help="At most.")
@click.option("--include", multiple=True, help="Pattern of matrices to take; may be repeated.")
@click.option("--exclude", multiple=True, help="Pattern of matrices to leave; may be repeated.")
@click.option("--force", is_flag=True, help="Replace the plan if it exists.")
@revision_option
@json_option
def plan(
    src: str,
    calibration: Path,
    budgets: tuple[float, ...],
    file: Path,
    window: int,
    windows: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    force: bool,
    revision: str | None,
    as_json: bool,
) -> None:
    """Choose bits for every matrix of SRC by their predicted effect on the loss.

    One calibration serves all budgets; `plastic compress --plan` carries out one of them.
    """
    output = Output(as_json)
    result = planning.plan_checkpoint(
        src,
        file,
        calibration=Calibration(calibration, window, windows),
        bits_per_weight=budgets,
        include=include,
        exclude=exclude,
        revision=revision,
        force=force,
        track=output.track,
    )
    output.show(losstables.planned_record(result, file), *losstables.planned(result, file))


def carry_out_plan(
    src: str,
    out: Path,
    plan_file: Path,
    *,
    bits_per_weight: float | None,
    revision: str | None,
    force: bool,
    output: Output,
) -> None:
    """What ``plastic compress --plan`` does."""
    _check_decided_by_plan()
    result = quantised.execute_plan(
        src,
        out,
        plan_file,
        bits_per_weight=bits_per_weight,
        revision=revision,
        force=force,
        track=output.track,
    )
    output.show(losstables.quantised_record(result), *losstables.quantised(result))


def _check_decided_by_plan() -> None:
    """Refuse the options that have no say beside a plan."""
    context = click.get_current_context()
    allowed = {"src", "out", "plan_file", "bits_per_weight", "revision", "force", "as_json"}
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "")
        if given is ParameterSource.COMMANDLINE and parameter.name not in allowed:
            raise click.UsageError(f"--plan has decided; drop {parameter.opts[0]}")
