"""``plastic evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from plastic_export.cli.console import Output
from plastic_export.cli.options import (
    IDS,
    TEXT,
    json_option,
    tokenizer_option,
    window_option,
    windows_option,
)
from plastic_export.evaluation.evaluation import compare
from plastic_export.reporting.evaluate import present_evaluations


@click.command("evaluate", short_help="Measure checkpoints on texts.")
@click.argument("sources", metavar="SRC...", nargs=-1, required=True)
@click.option("--text", "texts", type=TEXT, multiple=True, required=True, help=f"Repeatable. {IDS}")
@click.option("--reference", help="Checkpoint to compare with: KL divergence, top-1 agreement.")
@window_option()
@windows_option(default=24)
@tokenizer_option()
@json_option()
def evaluate_command(
    sources: tuple[str, ...],
    texts: tuple[Path, ...],
    reference: str | None,
    window: int,
    windows: int,
    tokenizer: str | None,
    as_json: bool,
) -> None:
    """Measure the perplexity of every SRC on texts.

    Against a reference also the KL divergence from it and the top-1 agreement, token by token.
    Every SRC after the first is compared with that one on the same windows of text.
    """
    output = Output(as_json)
    results = compare(
        sources,
        texts,
        reference=reference,
        window=window,
        windows=windows,
        tokenizer=tokenizer,
        track=output.track,
    )
    output.show(present_evaluations(results))
