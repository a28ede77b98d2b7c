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
from plastic_export.evaluation.evaluation import compare
from plastic_export.reporting.evaluate import present_evaluations


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
@window_option()
@windows_option(default=24)
@tokenizer_option()
@memory_option()
@json_option()
def evaluate_command(
    sources: tuple[str, ...],
    texts: tuple[Path, ...],
    reference: str | None,
    save_reference: Path | None,
    window: int,
    windows: int,
    tokenizer: str | None,
    memory: int | None,
    as_json: bool,
) -> None:
    """Measure the perplexity of every SRC on texts.

    Against a reference also the KL divergence from it and the top-1 agreement, token by token.
    Every SRC after the first is compared with that one on the same windows of text. The reference
    runs first and once, then each SRC, one block of one model in memory at a time.
    """
    output = Output(as_json)
    results = compare(
        sources,
        texts,
        reference=reference,
        save_reference=save_reference,
        window=window,
        windows=windows,
        tokenizer=tokenizer,
        memory=memory,
        say=output.say,
        track=output.track,
    )
    output.show(present_evaluations(results))
