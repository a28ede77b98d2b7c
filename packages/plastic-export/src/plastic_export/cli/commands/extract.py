"""``plastic extract``."""

from __future__ import annotations

from pathlib import Path

import click

from plastic_export.calibration.text import Calibration
from plastic_export.cli.console import Output
from plastic_export.cli.options import (
    FOLDER,
    MIXED,
    TEXT,
    exclude_option,
    include_option,
    json_option,
    memory_option,
    tokenizer_option,
    window_option,
)
from plastic_export.cli.rank_options import rank_goal_options
from plastic_export.extraction.extraction import extract
from plastic_export.extraction.gain import WINDOWS
from plastic_export.reporting.extract import present_extracted
from plastic_export.reshaping.rank_choice import RankGoal


@click.command("extract", short_help="Make a LoRA of what a fine-tune changed.")
@click.argument("base")
@click.argument("tuned")
@click.argument("out", type=FOLDER)
@rank_goal_options
@click.option(
    "--calibration",
    type=TEXT,
    help="Text that decides which directions count; without one all count alike.",
)
@click.option("--text", type=TEXT, help=f"Text on which the losses are measured; {MIXED}")
@window_option()
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=WINDOWS,
    show_default=True,
    help="Windows of --text at most, spread evenly over it.",
)
@click.option(
    "--calibration-windows",
    type=click.IntRange(1),
    default=Calibration.windows,
    show_default=True,
    help="The same of --calibration.",
)
@tokenizer_option()
@include_option()
@exclude_option()
@click.option("--no-check", "check", flag_value=False, default=True, help="Measure no losses.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@memory_option()
@json_option()
def extract_command(
    base: str,
    tuned: str,
    out: Path,
    max_size: int | None,
    energy: float | None,
    rank: int | None,
    calibration: Path | None,
    text: Path | None,
    window: int,
    windows: int,
    calibration_windows: int,
    tokenizer: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    check: bool,
    seed: int,
    memory: int | None,
    as_json: bool,
) -> None:
    """Write to OUT the adapter over BASE that comes nearest to TUNED.

    The leading components of the difference of every matrix, at a rank per layer from one budget;
    without --max-size, --energy or --rank all that stands out of the rounding of the stored
    weights. OUT gets `adapters` for mlx-lm, `peft`, and what is no matrix in `beside.safetensors`.
    """
    output = Output(as_json)
    given = {"--max-size": max_size, "--energy": energy, "--rank": rank}
    named = [option for option, value in given.items() if value is not None]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} each say how much is kept; give one")
    result = extract(
        base,
        tuned,
        out,
        RankGoal(max_bytes=max_size, energy=energy, rank=rank) if named else None,
        calibration=None
        if calibration is None
        else Calibration(calibration, window, calibration_windows, tokenizer),
        text=Calibration(text, window, windows, tokenizer),
        include=include,
        exclude=exclude,
        check=check,
        memory=memory,
        seed=seed,
        track=output.track,
    )
    output.show(present_extracted(result, base, tuned))
