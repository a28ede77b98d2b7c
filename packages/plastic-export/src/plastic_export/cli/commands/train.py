"""``plastic train``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.decorators import FC

from plastic_export.cli.console import Output
from plastic_export.cli.joined import current_team
from plastic_export.cli.options import (
    FOLDER,
    exclude_option,
    include_option,
    json_option,
    memory_option,
    revision_option,
    size_option,
    tokenizer_option,
)
from plastic_export.reporting.train import present_trained
from plastic_export.training.run import train
from plastic_export.training.settings import OPTIMIZERS, STATES, TrainingOptions

_DEFAULT = TrainingOptions()
_COUNT = click.IntRange(1)


def _number(flag: str, type: Any, help: str | None = None) -> Callable[[FC], FC]:
    """Return an option whose default is that of `TrainingOptions`."""
    default = getattr(_DEFAULT, flag.strip("-").replace("-", "_"))
    return click.option(flag, type=type, default=default, show_default=True, help=help)


@click.command("train", short_help="Fine-tune with ranks that adapt.")
@click.argument("src")
@click.option(
    "--data",
    type=FOLDER,
    required=True,
    multiple=True,
    help="Folder with train.jsonl and valid.jsonl, or shards of them, or a file of rows: JSONL, "
    "parquet, arrow. May be repeated.",
)
@click.option("--out", type=FOLDER, required=True, metavar="RUN", help="Folder of the run.")
@size_option(
    "--max-size",
    help="Bytes of the adapter at most, such as 3MB: of RUN/adapters as mlx-lm loads it, and of "
    "RUN/peft. By default that of mlx_lm.lora's adapter.",
)
@click.option("--from", "start", type=FOLDER, help="Adapter to go on from: of mlx-lm, PEFT, a RUN.")
@click.option(
    "--follow",
    type=click.Choice(["loss", "budget"]),
    help="Plateaus of the validation loss, or one cut to --max-size: the latter, unless --rank is "
    "given alone.",
)
@click.option("--rank", type=_COUNT, help="At the start, the head x 3; else 4 x --max-size, or 8.")
@_number("--steps", _COUNT, "Batches to take.")
@_number("--batch", _COUNT, "Rows in a batch.")
@_number("--accumulate", _COUNT, "Batches whose gradients make one update.")
@_number("--window", click.IntRange(2), "Tokens that stay of a longer row.")
@_number("--optimizer", click.Choice([*OPTIMIZERS]))
@_number(
    "--learning-rate",
    click.FloatRange(0, min_open=True),
    "The highest one; 1e-3 for cautious, 7e-4 for Adam and AdamW, 3e-4 for the others.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0),
    help="Updates during which the rate rises; a twelfth of all.",
)
@click.option("--decay/--no-decay", default=True, help="Let the rate fall to 0 along a cosine.")
@click.option(
    "--evaluate-every",
    type=_COUNT,
    help="Batches between validations, after which ranks may change; 50, or fewer in a short run "
    "and with --follow loss.",
)
@_number(
    "--evaluate-batches",
    click.IntRange(-1),
    "Batches of a validation, -1 for all; 25, or fewer with --follow loss.",
)
@_number("--patience", _COUNT, "End after so many validations without a lower loss.")
@_number("--state", click.Choice(STATES), "What the adapters are written from.")
@_number(
    "--forget",
    click.FloatRange(0, min_open=True),
    "KL divergence from SRC on other text that the adapters may have, in nats per token.",
)
@_number(
    "--remember",
    click.FloatRange(0, min_open=True),
    "Nats of loss per nat of KL divergence from SRC, on a window of that text in every step.",
)
@click.option("--base-text", type=FOLDER, help="That other text; texts of many kinds by default.")
@click.option("--mask-prompt", is_flag=True, help="Learn completions alone.")
@click.option("--grad-checkpoint", is_flag=True, help="Save memory, compute activations twice.")
@_number("--seed", click.IntRange(0))
@click.option("--report-to", help="Services that hear of losses: wandb, swanlab, or both.")
@click.option("--project-name", help="The project there.")
@include_option()
@exclude_option()
@tokenizer_option()
@memory_option()
@revision_option()
@json_option()
def train_command(
    src: str,
    data: tuple[Path, ...],
    out: Path,
    max_size: int | None,
    start: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    tokenizer: str | None,
    revision: str | None,
    base_text: Path | None,
    report_to: str | None,
    project_name: str | None,
    memory: int | None,
    as_json: bool,
    **numbers: Any,
) -> None:
    """Fine-tune SRC with ranks that follow the validation loss, in mlx-lm's own trainer.

    Rows of --data are texts, prompts with completions, or chats, as mlx_lm.lora reads them. Rows
    with nothing to learn are named and left out; a tenth is held out where no file is there to
    validate on. A run that was cut goes on when it is started again with the same arguments. RUN
    gets the logs (`plastic report RUN`), the newest states and that of the lowest validation loss,
    from which in the end `adapters` for mlx-lm and `peft` are written.
    """
    output = Output(as_json)
    result = train(
        src,
        data,
        out,
        TrainingOptions(max_bytes=max_size, **numbers),
        include=include,
        exclude=exclude,
        tokenizer=tokenizer,
        revision=revision,
        base_text=base_text,
        start=start,
        memory=memory,
        say=output.say,
        listener=_listener(report_to, project_name, out) if output.leads else None,
        track=output.track,
        team=current_team(),
    )
    output.show(present_trained(result, src, out))


def _listener(report_to: str | None, project: str | None, out: Path) -> Any:
    """Return mlx-lm's callback for the services that were named."""
    if report_to is None:
        return None
    from mlx_lm.tuner.callbacks import get_reporting_callbacks

    try:
        return get_reporting_callbacks(report_to, project, str(out), {})
    except (ImportError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="--report-to") from None
