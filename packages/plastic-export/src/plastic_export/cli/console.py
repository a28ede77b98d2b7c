"""The output of the ``plastic`` command."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from plastic_core.rounding import CompilingWarning
from rich.console import Console

from plastic_export.checkpoint.warning import CheckpointWarning
from plastic_export.cli.bar import ProgressBar
from plastic_export.cli.joined import current_team
from plastic_export.reporting.tables import Presented

PRINTED = (CheckpointWarning, CompilingWarning)
"""What a line of its own tells."""
DONE = "the work was complete, only its report is cut"


class Output:
    """The place where results go: tables for people, or one JSON object for machines.

    Of several processes that work together the first one prints.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json, self.leads = as_json, current_team().leads
        is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None: it was closed
        width = None if is_terminal else 200  # a file cuts nothing
        self.out = Console(highlight=False, width=width)
        self.track = ProgressBar(Console(stderr=True, quiet=as_json or not self.leads))

    def say(self, line: str) -> None:
        """Print a line on standard error, unless the reader is a machine."""
        if self.leads and not self.as_json:
            click.echo(line, err=True)

    def show(self, presented: Presented) -> None:
        """Print the record as JSON, or else the lines; what is interrupted here has been done."""
        if not self.leads:
            return
        try:
            if self.as_json:
                click.echo(json.dumps(presented.record, indent=2, default=str))
                return
            for line in presented.lines:
                # brackets of a path are no markup, and a command is to be copied in one piece
                self.out.print(line, markup=False, soft_wrap=isinstance(line, str))
        except KeyboardInterrupt as error:
            error.add_note(DONE)
            raise


def escape_what_cannot_be_encoded() -> None:
    """Let no name of a file be one that cannot be printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Print every warning that is meant for people once, as one line on standard error."""
    with warnings.catch_warnings():
        for kind in PRINTED:
            warnings.simplefilter("always", kind)
        others, printed = warnings.showwarning, set[str]()

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, PRINTED):
                others(message, category, *place, **more)
            elif current_team().leads and str(message) not in printed:
                printed.add(str(message))
                click.echo(f"warning: {message}", err=True)

        warnings.showwarning = show
        yield
