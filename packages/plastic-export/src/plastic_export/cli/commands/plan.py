"""``plastic plan``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from plastic_core.factors import BITS, GROUP_SIZES
from plastic_core.files import FormatError
from plastic_core.rounding import UNPACKED
from plastic_runtime.measure import LONGEST_DENSE_SIDE

from plastic_export.calibration.text import Calibration
from plastic_export.cli.console import Output
from plastic_export.cli.joined import current_team
from plastic_export.cli.options import (
    FOLDER,
    budget_option,
    calibration_option,
    exclude_option,
    force_option,
    format_option,
    include_option,
    json_option,
    memory_option,
    revision_option,
    tokenizer_option,
    window_option,
    windows_option,
)
from plastic_export.compression.forecast import GIGABITS, estimate_plan
from plastic_export.compression.plan_file import LossPlan
from plastic_export.compression.planning import plan_checkpoint
from plastic_export.estimate.processes import FASTEST, SLOWEST
from plastic_export.format.table import FORMATS, PLAN_FORMATS
from plastic_export.plan.budgets import Budget
from plastic_export.plan.choices import Choices
from plastic_export.reporting.plan.estimate import present_plan_estimate
from plastic_export.reporting.plan.made import present_plan
from plastic_export.reporting.plots.plan_plot import save_plan_plot
from plastic_export.reporting.plots.replacing import check_replaceable

DEFAULT = (3.0, 3.5, 4.5)  # bits per weight


_OFFERED = {"bits": BITS, "group_sizes": GROUP_SIZES, "factor_bits": (*BITS, UNPACKED)}


def _some(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    offered = _OFFERED[str(param.name)]
    words = [word.strip() for word in (value or "").split(",") if value is not None]
    if not {*words} <= {*map(str, offered)}:
        raise click.BadParameter(f"{value!r} must be some of {', '.join(map(str, offered))}")
    return tuple(sorted(map(int, words))) if words else None


@click.command("plan", short_help="Choose bits, group sizes and ranks for a size in bytes.")
@click.argument("src")
@calibration_option(help="Text to measure the loss on")
@budget_option("bits_per_weight", several=True, help="Budgets, by default 3,3.5,4.5: ")
@budget_option("size", several=True, help="Budgets: ")
@budget_option("keep", several=True, help="Budgets: ")
@format_option(PLAN_FORMATS, "mixed")
@click.option("--bits", callback=_some, help="Bits to choose from, such as 4,8; by default all.")
@click.option(
    "--group-size",
    "group_sizes",
    callback=_some,
    help="Weights per scale to choose from, such as 32,64; by default 32, 64 and 128.",
)
@click.option("--factor-bits", callback=_some, help="Bits of the entries of corrections.")
@click.option(
    "--out", "file", type=FOLDER, default="plan.json", show_default=True, help="Plan to write."
)
@window_option()
@windows_option()
@tokenizer_option()
@include_option()
@exclude_option()
@click.option(
    "--embeddings/--no-embeddings", default=True, show_default=True, help="Plan them too."
)
@click.option(
    "--widest",
    type=click.IntRange(1),
    default=LONGEST_DENSE_SIDE,
    show_default=True,
    help="Longest side with a whole Gram; along longer ones, blocks.",
)
@click.option(
    "--thorough", is_flag=True, help="Round and run every matrix in every way: many times the work."
)
@click.option("--dry-run", is_flag=True, help="Only say what it will take: time, memory, bytes.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    show_default="those that were started",
    help="With --dry-run: in so many processes, each on a machine like this one.",
)
@click.option(
    "--bandwidth",
    "gigabits",
    type=float,
    metavar="GBIT",
    default=GIGABITS,
    show_default=True,
    help=f"With --dry-run: Gbit/s from one machine to the next, {SLOWEST:g} to {FASTEST:.0f}.",
)
@force_option("the plan if it exists, and Grams that are of something else or damaged")
@revision_option()
@memory_option()
@json_option()
def plan_command(
    src: str,
    calibration: Path | None,
    bits_per_weight: list[Budget] | None,
    size: list[Budget] | None,
    keep: list[Budget] | None,
    format_: Any,
    bits: tuple[int, ...] | None,
    group_sizes: tuple[int, ...] | None,
    factor_bits: tuple[int, ...] | None,
    file: Path,
    window: int,
    windows: int,
    tokenizer: str | None,
    dry_run: bool,
    processes: int | None,
    gigabits: float,
    as_json: bool,
    **selection: Any,
) -> None:
    """Choose bits, group sizes and ranks for all matrices of SRC by their effect on the loss.

    One calibration serves all budgets; `plastic compress --plan` carries out one of them. The plan
    may be edited. A plot of predicted KL over size is saved beside it, if matplotlib (the extra
    `plots`) is installed.
    """
    output = Output(as_json)
    _check_foreseen(dry_run)
    plot = file.with_suffix(".png")
    _check_plot(file, plot)
    budgets = [*(bits_per_weight or ()), *(size or ()), *(keep or ())]
    if bits and not budgets:
        raise click.UsageError("--bits needs a budget: --bits-per-weight, --size or --keep")
    asked: dict[str, Any] = {
        "calibration": Calibration(calibration, window, windows, tokenizer),
        "budgets": budgets or DEFAULT,
        "format": format_,
        "choices": _choices(format_, bits, group_sizes, factor_bits),
        **selection,
    }
    team = current_team()
    if dry_run:
        joined = processes or team.size
        found = estimate_plan(src, file, **asked, processes=joined, gigabits=gigabits)
        output.show(present_plan_estimate(found))
        return
    result = plan_checkpoint(src, file, **asked, say=output.say, track=output.track, team=team)
    if output.leads:
        output.show(present_plan(result, file, _drawn(plot, result)))


def _check_foreseen(dry_run: bool) -> None:
    """Refuse options of what is only foreseen where something is made."""
    context = click.get_current_context()
    for param in context.command.params:
        given = context.get_parameter_source(str(param.name)) is not ParameterSource.DEFAULT
        if param.name in ("processes", "gigabits") and given and not dry_run:
            raise click.UsageError(f"{param.opts[0]} needs --dry-run")


def _drawn(plot: Path, plan: LossPlan) -> Path | None:
    """Save the plot; None where matplotlib is not installed."""
    try:
        save_plan_plot(plot, plan)
    except ModuleNotFoundError:
        return None
    return plot


def _check_plot(file: Path, plot: Path) -> None:
    """Refuse before the work a plan whose plot could not, or must not, be written beside it."""
    if file == plot:
        raise click.UsageError(f"--out {file} is the name of its plot; choose one in .json")
    if plot.is_symlink() or (plot.exists() and not plot.is_file()):
        raise FormatError.about(plot, "the plot cannot replace a link or a folder", "remove it")
    check_replaceable(plot)


def _choices(
    format: str,
    bits: tuple[int, ...] | None,
    group_sizes: tuple[int, ...] | None,
    factor_bits: tuple[int, ...] | None,
) -> Choices:
    """What the format offers, narrowed down."""
    choices = FORMATS[format].choices or Choices()
    if factor_bits and not FORMATS[format].packs_factors:
        packing = " or ".join(name for name in PLAN_FORMATS if FORMATS[name].packs_factors)
        raise click.UsageError(f"--factor-bits is for --format {packing}")
    if bits and not {*bits} <= {*choices.bits}:
        offered = ", ".join(map(str, choices.bits))
        raise click.UsageError(f"--bits of --format {format} are some of {offered}")
    return replace(
        choices,
        bits=bits or choices.bits,
        group_sizes=group_sizes or choices.group_sizes,
        factor_bits=factor_bits or choices.factor_bits,
    )
