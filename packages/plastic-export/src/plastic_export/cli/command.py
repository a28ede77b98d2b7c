"""The ``plastic`` command: parse, one library call, print."""

from __future__ import annotations

import errno
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click
from plastic_core.files import BusyError, FormatError
from plastic_select import STRATEGIES

from plastic_export.calibration.input_grams import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
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
from plastic_export.cli.evaluate import evaluate
from plastic_export.cli.heal import heal
from plastic_export.cli.plan import asked, carry_out_plan, plan
from plastic_export.cli.report import report
from plastic_export.cli.train import train
from plastic_export.compression import by_rank, restoration, verification
from plastic_export.compression.summary import summarize
from plastic_export.format.gguf import gguf_guide
from plastic_export.process.worker import WorkerError
from plastic_export.reporting import tables

DEFECT, BAD_INPUT, IO_ERROR, BUSY, INTERRUPTED = 1, 2, 3, 4, 5

EXPECTED = (
    click.ClickException,
    ValueError,
    OSError,
    ModuleNotFoundError,  # an extra is missing
    WorkerError,
    click.Abort,
    KeyboardInterrupt,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="plastic-export")
def plastic(debug: bool) -> None:
    """Compress checkpoints by rank, reversibly, and run them in stock mlx-lm."""


@plastic.command()
@click.argument("src")
@click.option("--spectra", is_flag=True, help="Also decompose every matrix: ranks by every rule.")
@revision_option
@json_option
def inspect(src: str, spectra: bool, revision: str | None, as_json: bool) -> None:
    """Show what the checkpoint SRC (a folder or a Hub id) holds."""
    output = Output(as_json)
    summary = summarize(src, revision=revision, spectra=spectra, track=output.track)
    output.show(asdict(summary), *tables.summary(summary))


@plastic.command()
@click.argument("src")
@click.argument("out", type=FOLDER)
@click.option("--plan", "plan_file", type=TEXT, help="Carry out a plan of `plastic plan`.")
@click.option("--bits-per-weight", type=float, help="Which budget of the plan.")
@click.option("--size", help="Which budget of the plan, where it is one for the checkpoint.")
@click.option("--keep", type=float, help="Fraction of the bytes that stays (awake).")
@click.option("--strategy", type=click.Choice(STRATEGIES), default="stable", show_default=True)
@click.option("--format", "format_", type=click.Choice(["factored", "dense"]), default="factored")
@click.option("--calibration", type=TEXT, help="Text for --strategy activation.")
@window_option
@click.option("--windows", type=click.IntRange(1), default=64, show_default=True, help="At most.")
@include_option
@exclude_option
@click.option("--force", is_flag=True, help="Replace OUT if it is an earlier output.")
@click.option("--exact", is_flag=True, help="Keep what `plastic restore` needs for every bit.")
@click.option("--resume", is_flag=True, help="Go on where the same command was cut.")
@revision_option
@json_option
def compress(
    src: str,
    out: Path,
    plan_file: Path | None,
    bits_per_weight: float | None,
    size: str | None,
    keep: float | None,
    strategy: str,
    format_: Any,
    calibration: Path | None,
    window: int,
    windows: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    force: bool,
    exact: bool,
    resume: bool,
    revision: str | None,
    as_json: bool,
) -> None:
    """Write a compressed copy of the checkpoint SRC to the folder OUT.

    By rank with --keep; in bits and ranks that are worth their bytes with --plan. What a run has
    finished when it is stopped is kept: --resume goes on with it, to the same bytes.
    """
    output = Output(as_json)
    if plan_file is not None:
        carry_out_plan(
            src,
            out,
            plan_file,
            budget=asked(bits_per_weight, size, keep),
            revision=revision,
            force=force,
            exact=exact,
            resume=resume,
            output=output,
        )
        return
    if keep is None or bits_per_weight is not None or size is not None:
        raise click.UsageError("give --keep, or a --plan and perhaps which of its budgets")
    result = by_rank.compress(
        src,
        out,
        keep=keep,
        strategy=strategy,
        format=format_,
        calibration=Calibration(calibration, window, windows) if calibration else None,
        include=include,
        exclude=exclude,
        revision=revision,
        force=force,
        exact=exact,
        resume=resume,
        track=output.track,
    )
    output.show(tables.compressed_record(result), *tables.compressed(result, format_))


@plastic.command()
@click.argument("out", type=FOLDER)
@click.argument("dest", type=FOLDER)
@json_option
def restore(out: Path, dest: Path, as_json: bool) -> None:
    """Wake everything in OUT and write it dense to DEST, bit for bit if it was kept --exact."""
    output = Output(as_json)
    result = restoration.restore(out, dest, track=output.track)
    output.show(asdict(result), tables.restored(result))


@plastic.command()
@click.argument("out", type=FOLDER)
@json_option
def verify(out: Path, as_json: bool) -> None:
    """Check OUT, a compressed folder or a sleep store, against its digests."""
    output = Output(as_json)
    defects = verification.verify(out, track=output.track)
    output.show({"out": out, "defects": defects}, *([] if defects else [f"{out}: intact"]))
    if defects:
        raise FormatError("\n".join(defects))


@plastic.command()
@click.argument("src")
@revision_option
@json_option
def gguf(src: str, revision: str | None, as_json: bool) -> None:
    """Print the commands that turn SRC into GGUF for llama.cpp."""
    output = Output(as_json)
    with open_checkpoint(src, revision=revision) as checkpoint:
        lines = gguf_guide(checkpoint)
    output.show(lines, *lines)


plastic.add_command(evaluate)
plastic.add_command(heal)
plastic.add_command(plan)
plastic.add_command(report)
plastic.add_command(train)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one line on standard error and an exit status.

    Exit status: 0 done, 1 a defect of this program (with its traceback), 2 bad input, 3 input or
    output failed, 4 another process is writing there, 5 interrupted.
    """
    words = sys.argv[1:] if arguments is None else arguments
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = plastic.main(words, prog_name="plastic", standalone_mode=False)
    except EXPECTED as error:
        if "--debug" in words[:1]:
            raise
        code = _report(error)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _report(error: BaseException) -> int:
    for line in _message(error).splitlines():
        click.echo(f"error: {line}", err=True)
    if isinstance(error, WorkerError):
        return DEFECT
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BusyError):
        return BUSY
    return IO_ERROR if isinstance(error, OSError) else BAD_INPUT


def _message(error: BaseException) -> str:
    # click turns KeyboardInterrupt into Abort, whose cause or context has the notes
    notes = getattr(error.__cause__ or error.__context__ or error, "__notes__", ())
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return f"interrupted; {'; '.join(notes) or 'no output was written'}"
    notes = getattr(error, "__notes__", ())
    remarks = "".join(f" ({note})" for note in notes)
    if isinstance(error, click.ClickException):
        return error.format_message().replace("\n", " ")
    if isinstance(error, OSError) and error.strerror:
        known = errno.errorcode.get(error.errno or 0)
        name = f" ({known})" if known and not isinstance(error, BusyError) else ""
        return f"{error.filename or 'input or output'}: {error.strerror}{name}{remarks}"
    return f"{error}{remarks}"
