"""``plastic heal``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from plastic_export.calibration.input_grams import Calibration
from plastic_export.cli.console import FOLDER, TEXT, Output, json_option, window_option
from plastic_export.healing.heal_folder import Healed
from plastic_export.healing.heal_folder import heal as heal_checkpoint
from plastic_export.healing.loop import HealingOptions
from plastic_export.reporting.tables import figures

_DEFAULT = HealingOptions()


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--reference", required=True, metavar="SRC", help="What FOLDER was made from.")
@click.option("--calibration", type=TEXT, required=True, help="Text to learn from.")
@click.option("--steps", type=click.IntRange(1), default=_DEFAULT.steps, show_default=True)
@window_option
@click.option("--windows", type=click.IntRange(8), default=512, show_default=True, help="At most.")
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
@click.option("--force", is_flag=True, help="Replace NEW if it is an earlier output.")
@json_option
def heal(
    folder: Path,
    reference: str,
    calibration: Path,
    steps: int,
    window: int,
    windows: int,
    batch: int,
    learning_rate: float,
    seed: int,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train what the compressed FOLDER stores in floating point towards the original.

    Scales, biases, factors, normalisations; sizes and codes stay as they are. What is written is
    never worse than FOLDER on held-out windows of the text. A run that was cut goes on when it is
    started again: its state is beside the output, in NEW.heal.safetensors.
    """
    output = Output(as_json)
    result = heal_checkpoint(
        folder,
        reference,
        out,
        calibration=Calibration(calibration, window, windows),
        options=HealingOptions(steps, batch, learning_rate, seed),
        force=force,
        track=output.track,
    )
    output.show(asdict(result), *_lines(result))


def _lines(r: Healed) -> list[Table | str]:
    """What is printed for people."""
    table = figures("after step", "KL to reference, mnat")
    for step, kl in r.measured:
        table.add_row(str(step), f"{1e3 * kl:.4f}")
    learned, held_out = r.windows
    if r.step:
        verdict = (
            f"healed     KL {1e3 * r.kl_before:.4f} -> {1e3 * r.kl_after:.4f} millinats per token "
            f"({r.kl_after / r.kl_before:.1%}), the values of step {r.step}"
        )
    else:
        verdict = "healed     no: nothing was better than the start, so every tensor is as it was"
    return [
        table,
        "",
        verdict,
        f"trained    {r.parameters:,} numbers in {r.tensors} tensors on {learned} windows; judged "
        f"by {held_out} held out",
        f"written    {r.out}",
    ]
