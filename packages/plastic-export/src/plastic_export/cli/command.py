"""The ``plastic`` command: the group of all commands, their errors and exit statuses."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import click
from plastic_core.files import BusyError, FormatError
from plastic_runtime.distributed import LostConnectionError, Team

from plastic_export.cli.commands.compress import compress_command
from plastic_export.cli.commands.evaluate import evaluate_command
from plastic_export.cli.commands.export import export_command
from plastic_export.cli.commands.extract import extract_command
from plastic_export.cli.commands.gguf import gguf_command
from plastic_export.cli.commands.heal import heal_command
from plastic_export.cli.commands.inspect import inspect_command
from plastic_export.cli.commands.merge import merge_command
from plastic_export.cli.commands.outputs.dial import dial_command
from plastic_export.cli.commands.outputs.restore import restore_command
from plastic_export.cli.commands.outputs.serve import serve_command
from plastic_export.cli.commands.outputs.verify import verify_command
from plastic_export.cli.commands.plan import plan_command
from plastic_export.cli.commands.push import push_command
from plastic_export.cli.commands.report import report_command
from plastic_export.cli.commands.resize import resize_command
from plastic_export.cli.commands.train import train_command
from plastic_export.cli.console import escape_what_cannot_be_encoded, printed_warnings
from plastic_export.cli.joined import check_team, current_team
from plastic_export.cli.wording import in_words_of
from plastic_export.evaluation.output_check import FailedCheckError
from plastic_export.model.library import model_failure
from plastic_export.process.interruption import interruptible, is_interrupted
from plastic_export.process.worker import WorkerError

DEFECT, BAD_INPUT, IO_ERROR, BUSY, INTERRUPTED = 1, 2, 3, 4, 5
PIPE_CLOSED = "the reader of the output was gone before all of it was written (EPIPE)"

EXPECTED = (
    click.ClickException,
    ValueError,
    OSError,
    ModuleNotFoundError,  # an extra is missing
    WorkerError,
    FailedCheckError,
    LostConnectionError,
    click.Abort,
    KeyboardInterrupt,
)


@click.group(
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="plastic-export")
@click.pass_context
def plastic_command(context: click.Context, debug: bool) -> None:
    """Compress checkpoints to a size in bytes, heal them, train with ranks that adapt.

    Bits and ranks are chosen by what the loss would pay; what a compression by rank leaves out
    sleeps beside it and wakes again. Everything runs in stock mlx-lm.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    else:
        check_team(current_team(), context.invoked_subcommand)


for _command in (
    compress_command,
    dial_command,
    evaluate_command,
    export_command,
    extract_command,
    gguf_command,
    heal_command,
    inspect_command,
    merge_command,
    plan_command,
    push_command,
    report_command,
    resize_command,
    restore_command,
    serve_command,
    train_command,
    verify_command,
):
    plastic_command.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one line on standard error and an exit status.

    Exit status: 0 done, 1 a defect of this program (with its traceback) or an output that does not
    run as it should, 2 bad input, 3 input or output failed, 4 another process is writing there, 5
    interrupted.

    Examples:
        >>> try:
        ...     main(["verify", "PACKED"])
        ... except SystemExit as ended:
        ...     print(ended.code)
        PACKED: intact
        0
    """
    words = sys.argv[1:] if arguments is None else arguments
    escape_what_cannot_be_encoded()
    team: Team | None = None
    with interruptible():
        try:
            team = current_team()
            with printed_warnings():
                code = plastic_command.main(words, prog_name="plastic", standalone_mode=False)
        except (KeyboardInterrupt, Exception) as error:
            if "--debug" in words[:1] or not _is_expected(error):
                raise
            leads = team is None or team.leads
            is_left = isinstance(error, LostConnectionError)  # the first one may be the lost one
            code = _report(error, words, prints=leads or is_left)
        except SystemExit as ended:  # without 0, the reader of a pipe was gone; with it, click
            code = _report(OSError(PIPE_CLOSED), words) if ended.code else 0  # has completed words
    sys.exit(code if isinstance(code, int) else 0)


def _is_expected(error: BaseException) -> bool:
    return (
        isinstance(error, EXPECTED) or _is_interruption(error) or model_failure(error) is not None
    )


def _is_interruption(error: BaseException) -> bool:
    """Tell whether it is one, or what a callback within MLX made of one."""
    return isinstance(error, click.Abort | KeyboardInterrupt) or is_interrupted()


def _report(error: BaseException, words: Sequence[str], *, prints: bool = True) -> int:
    message = _message(error)
    command = next(
        (plastic_command.commands[w] for w in words if w in plastic_command.commands), None
    )
    if command and not isinstance(error, FormatError):  # which is about the content of a file
        message = in_words_of(command, words, message)
    for line in message.splitlines() if prints else ():
        click.echo(f"error: {line}", err=True)
    if _is_interruption(error):
        return INTERRUPTED
    if isinstance(error, WorkerError | FailedCheckError):
        return DEFECT
    if isinstance(error, BusyError):
        return BUSY
    return IO_ERROR if isinstance(error, OSError | LostConnectionError) else BAD_INPUT


def _message(error: BaseException) -> str:
    # click turns KeyboardInterrupt into Abort, whose cause or context has the notes
    notes = getattr(error.__cause__ or error.__context__ or error, "__notes__", ())
    if _is_interruption(error):
        return f"interrupted; {'; '.join(notes) or 'no output was written'}"
    notes = getattr(error, "__notes__", ())
    remarks = "".join(f" ({note})" for note in notes)
    if failure := model_failure(error):
        return f"{failure}{remarks}"
    if isinstance(error, click.ClickException):
        return error.format_message().replace("\n", " ")
    if isinstance(error, OSError) and error.strerror:
        known = errno.errorcode.get(error.errno or 0)
        name = f" ({known})" if known and not isinstance(error, BusyError) else ""
        return f"{error.filename or 'input or output'}: {error.strerror}{name}{remarks}"
    return f"{error}{remarks}"
