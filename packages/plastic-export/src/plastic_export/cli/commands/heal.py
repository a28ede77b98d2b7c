"""``plastic heal``."""

from __future__ import annotations

from pathlib import Path

import click

from plastic_export.calibration.text import Calibration
from plastic_export.cli.console import Output
from plastic_export.cli.joined import current_team
from plastic_export.cli.options import (
    FOLDER,
    calibration_option,
    check_option,
    force_option,
    json_option,
    memory_option,
    tokenizer_option,
    window_option,
    windows_option,
)
from plastic_export.healing.heal_folder import heal
from plastic_export.healing.loop import HealingOptions
from plastic_export.reporting.heal import present_healed

_DEFAULT = HealingOptions()


@click.command("heal", short_help="Bring a compressed checkpoint nearer to its source.")
@click.argument("folder", type=FOLDER)
@click.option("--reference", required=True, metavar="SRC", help="What FOLDER was made from.")
@calibration_option(help="Text to learn from")
@click.option("--steps", type=click.IntRange(1), default=_DEFAULT.steps, show_default=True)
@window_option()
@windows_option(
    least=8, default=512, help="Windows of the text at most; seven of eight are learned from."
)
@tokenizer_option()
@memory_option()
@click.option(
    "--batch", type=click.IntRange(1), default=_DEFAULT.batch, show_default=True, help="Windows."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=_DEFAULT.learning_rate,
    show_default=True,
    help="Relative to the size of what is trained.",
)
@click.option("--seed", type=click.IntRange(0), default=_DEFAULT.seed, show_default=True)
@click.option("--out", type=FOLDER, metavar="NEW", help="Folder to write; else FOLDER is replaced.")
@check_option()
@force_option("NEW if it is an earlier output")
@json_option()
def heal_command(
    folder: Path,
    reference: str,
    calibration: Path | None,
    steps: int,
    window: int,
    windows: int,
    tokenizer: str | None,
    batch: int,
    learning_rate: float,
    seed: int,
    out: Path | None,
    force: bool,
    check: bool,
    memory: int | None,
    as_json: bool,
) -> None:
    """Train what the compressed FOLDER stores in floating point towards the original.

    Scales, biases, factors, normalisations; sizes and codes stay as they are. What is written is
    never worse than FOLDER on held-out windows of the text. A run that was cut goes on when it is
    started again: its state is beside the output, in NEW.heal.safetensors. Files in FOLDER that
    are not listed in its plastic.json stay as they are.
    """
    output = Output(as_json)
    result = heal(
        folder,
        reference,
        out,
        calibration=Calibration(calibration, window, windows, tokenizer),
        options=HealingOptions(steps, batch, learning_rate, seed),
        force=force,
        check=check,
        memory=memory,
        say=output.say,
        track=output.track,
        team=current_team(),
    )
    output.show(present_healed(result))
