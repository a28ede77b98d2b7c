"""Commands of this project, run in this process, and what came of them."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from plastic_export.cli import main

OK, REFUSED, FAILED, LEFT_OUT = "ok", "refused", "FAIL", "-"
BAD_INPUT = 2


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: its status, the line that says why, and seconds."""

    status: str
    line: str = ""
    seconds: float = 0.0


class RefusedError(Exception):
    """The command ended with status 2 and one line."""


class WrongError(Exception):
    """The command ended in a way that it never should, or what it wrote is wrong."""


def command(*words: object) -> Any:
    """Run ``plastic`` with these words and ``--json``, and return the object that it prints.

    Raises:
        RefusedError: If it says in one line what is wrong with the input.
        WrongError: If it ends in any other way.
    """
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([*map(str, words), "--json"])
        except SystemExit as stopped:
            code = stopped.code
    if code == 0:
        return json.loads(out.getvalue())
    errors = [e.removeprefix("error: ") for e in err.getvalue().splitlines() if "error: " in e]
    if code == BAD_INPUT and len(errors) == 1:
        raise RefusedError(errors[0])
    raise WrongError(f"{words[0]}: exit {code}: {' / '.join(errors)}")


def outcome_of(step: Callable[[], None]) -> Outcome:
    """Run a step, and return what came of it, whatever it raises."""
    begun = time.monotonic()
    status, line = OK, ""
    try:
        step()
    except RefusedError as error:
        status, line = REFUSED, str(error)
    except WrongError as error:
        status, line = FAILED, str(error)
    except Exception as error:  # a traceback for a user
        status, line = FAILED, f"{type(error).__name__}: {error}"
    return Outcome(status, " ".join(line.split()), time.monotonic() - begun)
