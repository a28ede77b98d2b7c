"""``plastic evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from plastic_export.cli.console import Output
from plastic_export.cli.joined import current_team
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
from plastic_export.reporting.evaluation.evaluate import present_evaluations
from plastic_export.reporting.evaluation.task_scores import present_scores
from plastic_export.reporting.plots.drawing import check_drawing
from plastic_export.reporting.plots.kl_plot import save_kl_plot
from plastic_export.reporting.plots.replacing import check_replaceable
from plastic_export.reporting.tables import Presented
from plastic_export.tasks.judging import check_tasks, evaluate_tasks

OF_TEXTS = ("save_reference", "window", "windows", "like", "both_directions", "full", "plot")
OF_TASKS = ("items", "shots", "include_path", "chat_template")


def _listed(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Read names with commas between them."""
    names = () if value is None else tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise click.BadParameter(f"{value!r} must be names such as arc_easy,hellaswag")
    return names


@click.command("evaluate", short_help="Measure checkpoints on texts.")
@click.argument("sources", metavar="SRC...", nargs=-1, required=True)
@click.option("--text", "texts", type=TEXT, multiple=True, help=f"Repeatable. {IDS}")
@click.option(
    "--tasks",
    metavar="NAME,...",
    callback=_listed,
    help="Tasks, groups or patterns of lm-evaluation-harness to score in, with data from this "
    "machine; the extra `tasks`.",
)
@click.option(
    "--reference",
    metavar="REF",
    help="Checkpoint to compare with: KL divergence, top-1 agreement, scores. Or what was saved "
    "of one, for texts.",
)
@click.option(
    "--limit", "items", type=click.IntRange(1), help="Questions per task at most, the first ones."
)
@click.option(
    "--num-shots",
    "shots",
    type=click.IntRange(0),
    help="Solved questions before each.",
    show_default="the task's own number",
)
@click.option(
    "--include-path",
    type=FOLDER,
    metavar="DIR",
    help="Folder of further task definitions (YAML); functions that they name are run.",
)
@click.option(
    "--apply-chat-template/--no-apply-chat-template",
    "chat_template",
    default=None,
    help="Whether questions are rendered with the chat template.",
    show_default="if there is one",
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
    tasks: tuple[str, ...],
    reference: str | None,
    items: int | None,
    shots: int | None,
    include_path: Path | None,
    chat_template: bool | None,
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
    """Measure the perplexity of every SRC on texts, and its scores in tasks.

    Against a reference also the KL divergence from it and the agreement, token by token. Every SRC
    after the first is compared with that one on the same windows of text. The reference runs first
    and once, then each SRC, one block of one model in memory at a time.

    Tasks are those of lm-evaluation-harness, as `mlx_lm.evaluate` runs them: one model in memory
    at a time, as a whole. Scores are compared with those of the reference, or of the first SRC.
    """
    output, team = Output(as_json), current_team()
    _check_choice(texts, tasks)
    if tasks and team.size > 1:
        raise click.UsageError("--tasks runs in one process; start it without mlx.launch")
    if plot is not None:
        _check_plot(plot, reference)
    if texts and tasks:
        check_tasks(tasks, include_path=include_path, reference=reference)
    parts = []
    if texts:
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
            team=team,
        )
        parts.append(present_evaluations(results, full=full))
    if tasks:
        scores = evaluate_tasks(
            sources,
            tasks,
            reference=reference,
            items=items,
            shots=shots,
            include_path=include_path,
            chat_template=chat_template,
            tokenizer=tokenizer,
            memory=memory,
            track=output.track,
        )
        parts.append(present_scores(scores))
    output.show(_together(parts))
    if plot is not None and output.leads:
        save_kl_plot(plot, results)
        output.say(f"plot: {plot}")


def _check_choice(texts: tuple[Path, ...], tasks: tuple[str, ...]) -> None:
    """Refuse to measure nothing, and options of what is not measured."""
    if not texts and not tasks:
        raise click.UsageError("Missing option '--text' or '--tasks'.")
    context = click.get_current_context()
    useless = (*(() if texts else OF_TEXTS), *(() if tasks else OF_TASKS))
    needed = "--tasks" if texts else "--text"
    for param in context.command.params:
        source = context.get_parameter_source(str(param.name))
        if param.name in useless and source is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{param.opts[0]} needs {needed}")


def _together(parts: list[Presented]) -> Presented:
    """Join what was found on texts and in tasks, one object and one page."""
    record: dict[str, Any] = {"evaluations": [], "scores": []}
    for part in parts:
        record |= part.record
    lines = [line for part in parts for line in ("", *part.lines)]
    return Presented(record, lines[1:])


def _check_plot(plot: Path, reference: str | None) -> None:
    """Refuse before the work a plot that could not be drawn, or not be written."""
    if reference is None:
        raise click.UsageError("--plot draws the KL divergence from a --reference")
    check_drawing()
    check_replaceable(plot)
