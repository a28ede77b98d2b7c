"""``plastic evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from plastic_export.cli.console import Output
from plastic_export.cli.options import (
    FOLDER,
    IDS,
    TEXT,
    json_option,
    memory_option,
    tokenizer_option,
    window_option,
    windows_option,
)
from plastic_export.evaluation.convention import CONVENTIONS, OWN, Like
from plastic_export.evaluation.evaluation import compare
from plastic_export.reporting.evaluate import present_evaluations
from plastic_export.reporting.plots.drawing import check_drawing
from plastic_export.reporting.plots.kl_plot import save_kl_plot
from plastic_export.reporting.plots.replacing import check_replaceable


@click.command("evaluate", short_help="Measure checkpoints on texts.")
@click.argument("sources", metavar="SRC...", nargs=-1, required=True)
@click.option("--text", "texts", type=TEXT, multiple=True, required=True, help=f"Repeatable. {IDS}")
@click.option(
    "--reference",
    metavar="REF",
    help="Checkpoint to compare with: KL divergence, top-1 agreement. Or what was saved of one.",
)
@click.option(
    "--save-reference",
    type=FOLDER,
    metavar="FILE",
    help="Save what REF predicts, 2 bytes per token and word of the vocabulary, as a later REF.",
)
@window_option(default=None, show_default=f"{OWN.window}, and 512 with --like")
@windows_option(default=None, show_default=f"{OWN.windows}; --like llama.cpp all, mlx-lm 256")
@click.option(
    "--like",
    type=click.Choice([*CONVENTIONS]),
    help="Cut, score and count errors as this tool's perplexity does: llama.cpp scores the second "
    "half of every window, and both take tokens for independent.",
)
@click.option("--both-directions", is_flag=True, help="Measure KL(SRC || REF) too; see --full.")
@click.option("--full", is_flag=True, help="Print every figure: ratio, percentiles, speed, memory.")
@click.option(
    "--plot", type=FOLDER, metavar="FILE", help="Save KL over size as a PNG; the extra `plots`."
)
@tokenizer_option()
@memory_option()
@json_option()
def evaluate_command(
    sources: tuple[str, ...],
    texts: tuple[Path, ...],
    reference: str | None,
    save_reference: Path | None,
    window: int | None,
    windows: int | None,
    like: Like | None,
    both_directions: bool,
    full: bool,
    plot: Path | None,
    tokenizer: str | None,
    memory: int | None,
    as_json: bool,
) -> None:
    """Measure the perplexity of every SRC on texts.

    Against a reference also the KL divergence from it and the agreement, token by token. Every SRC
    after the first is compared with that one on the same windows of text. The reference runs first
    and once, then each SRC, one block of one model in memory at a time.
    """
    output = Output(as_json)
    if plot is not None:
        _check_plot(plot, reference)
    results = compare(
        sources,
        texts,
        reference=reference,
        save_reference=save_reference,
        window=window,
        windows=windows,
        like=like,
        both_directions=both_directions,
        tokenizer=tokenizer,
        memory=memory,
        say=output.say,
        track=output.track,
    )
    output.show(present_evaluations(results, full=full))
    if plot is not None:
        save_kl_plot(plot, results)
        output.say(f"plot: {plot}")


def _check_plot(plot: Path, reference: str | None) -> None:
    """Refuse before the work a plot that could not be drawn, or not be written."""
    if reference is None:
        raise click.UsageError("--plot draws the KL divergence from a --reference")
    check_drawing()
    check_replaceable(plot)
