"""``plastic plan``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
from plastic_core.factors import BITS
from plastic_core.files import FormatError
from plastic_core.rounding import UNPACKED
from plastic_runtime.measure import LONGEST_DENSE_SIDE

from plastic_export.calibration.text import Calibration
from plastic_export.cli.console import (
    FOLDER,
    TEXT,
    Output,
    exclude_option,
    include_option,
    json_option,
    revision_option,
    window_option,
)
from plastic_export.compression.planning import plan_checkpoint
from plastic_export.plan.budgets import Budget, parse_size
from plastic_export.plan.offers import Format
from plastic_export.plan.plan_file import LossPlan
from plastic_export.plan.pricing import CHOICES, Choices
from plastic_export.reporting.plan import present_plan
from plastic_export.reporting.plots.plan_plot import save_plan_plot

DEFAULT = "3,3.5,4.5"


def _words(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    """``"3, 3.5"`` as ``["3", "3.5"]``; none if the option is not given."""
    words = [word.strip() for word in (value or "").split(",")]
    if value is not None and not all(words):
        raise click.BadParameter(f"{value!r} must be values such as 3,3.5,4.5")
    return words if value is not None else []


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float]:
    try:
        return [float(word) for word in _words(ctx, param, value)]
    except ValueError:
        raise click.BadParameter(f"{value!r} must be numbers such as 3,3.5,4.5") from None


def _sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float]:
    try:
        return [parse_size(word) for word in _words(ctx, param, value)]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _bits(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    offered = (*BITS, UNPACKED) if param.name == "factor_bits" else BITS
    words = _words(ctx, param, value)
    if not {*words} <= {str(bits) for bits in offered}:
        raise click.BadParameter(f"{value!r} must be some of {', '.join(map(str, offered))}")
    return tuple(sorted(map(int, words))) if words else None


@click.command("plan")
@click.argument("src")
@click.option("--calibration", type=TEXT, required=True, help="Text to measure the loss on.")
@click.option(
    "--bits-per-weight",
    callback=_numbers,
    help="Budgets: bits on disk per entry of the matrices, scales and factors counted. "
    f"By default {DEFAULT} if no other budget is given.",
)
@click.option(
    "--size", callback=_sizes, help="Budgets for all tensors of the checkpoint: 3MB,4.5MiB."
)
@click.option("--keep", callback=_numbers, help="Budgets: fractions of the matrices' bytes.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(get_args(Format)),
    default="mixed",
    show_default=True,
    help="mixed: bits per matrix, loads everywhere. corrected: bits and ranks, needs "
    "--trust-remote-code. adapter: bits and a stock adapter.",
)
@click.option("--bits", callback=_bits, help="Bits to choose from, such as 4,8; by default all.")
@click.option("--factor-bits", callback=_bits, help="Bits of the entries of corrections.")
@click.option(
    "--out", "file", type=FOLDER, default="plan.json", show_default=True, help="Plan to write."
)
@window_option
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=Calibration.windows,
    show_default=True,
    help="At most.",
)
@include_option
@exclude_option
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
@click.option("--force", is_flag=True, help="Replace the plan if it exists.")
@revision_option
@json_option
def plan_command(
    src: str,
    calibration: Path,
    bits_per_weight: list[float],
    size: list[float],
    keep: list[float],
    format_: Any,
    bits: tuple[int, ...] | None,
    factor_bits: tuple[int, ...] | None,
    file: Path,
    window: int,
    windows: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    embeddings: bool,
    widest: int,
    force: bool,
    revision: str | None,
    as_json: bool,
) -> None:
    """Choose bits and ranks for every matrix of SRC by their predicted effect on the loss.

    One calibration serves all budgets; `plastic compress --plan` carries out one of them. The plan
    may be edited. A plot of predicted KL over size is saved beside it, if matplotlib (the extra
    `plots`) is installed.
    """
    output = Output(as_json)
    plot = file.with_suffix(".png")
    _check_plot(file, plot)
    budgets = [
        *(Budget("bits_per_weight", value) for value in bits_per_weight),
        *(Budget("size", value) for value in size),
        *(Budget("keep", value) for value in keep),
    ]
    if bits and not budgets:
        raise click.UsageError("--bits needs a budget: --bits-per-weight, --size or --keep")
    result = plan_checkpoint(
        src,
        file,
        calibration=Calibration(calibration, window, windows),
        budgets=budgets or [float(word) for word in DEFAULT.split(",")],
        format=format_,
        choices=_choices(format_, bits, factor_bits),
        include=include,
        exclude=exclude,
        embeddings=embeddings,
        widest=widest,
        revision=revision,
        force=force,
        track=output.track,
    )
    output.show(present_plan(result, file, _drawn(plot, result)))


def _drawn(plot: Path, plan: LossPlan) -> Path | None:
    """Save the plot; None where matplotlib is not installed."""
    try:
        save_plan_plot(plot, plan)
    except ModuleNotFoundError:
        return None
    return plot


def _check_plot(file: Path, plot: Path) -> None:
    """Refuse before the work a plan whose plot could not be written beside it."""
    if file == plot:
        raise click.UsageError(f"--out {file} is the name of its plot; choose one in .json")
    if plot.is_symlink() or (plot.exists() and not plot.is_file()):
        raise FormatError.about(plot, "the plot cannot replace a link or a folder", "remove it")


def _choices(
    format: Format, bits: tuple[int, ...] | None, factor_bits: tuple[int, ...] | None
) -> Choices:
    """What the format offers, narrowed down."""
    choices = CHOICES[format]
    if factor_bits and format != "corrected":
        raise click.UsageError("--factor-bits is for --format corrected")
    return replace(
        choices, bits=bits or choices.bits, factor_bits=factor_bits or choices.factor_bits
    )
