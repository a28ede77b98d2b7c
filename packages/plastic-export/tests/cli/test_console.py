"""What is printed of a result, and what an interruption of that says."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
from plastic_core.rounding import CompilingWarning
from plastic_export.checkpoint.warning import CheckpointWarning, warn_about
from plastic_export.cli.console import DONE, Output, printed_warnings
from plastic_export.reporting.tables import Presented


class Interrupting:
    """A part whose printing is interrupted."""

    def __rich__(self) -> str:
        raise KeyboardInterrupt


def test_an_interrupted_report_says_that_the_work_was_done() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        Output(as_json=False).show(Presented({}, ["first", Interrupting()]))
    assert caught.value.__notes__ == [DONE]


def test_a_record_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).show(Presented({"a": 1}, [Interrupting()]))
    assert capsys.readouterr().out == '{\n  "a": 1\n}\n'


@pytest.mark.parametrize("as_json", [False, True])
def test_a_closed_output_is_no_error(monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    monkeypatch.setattr("sys.stdout", None)  # as Python has it where the descriptor is closed
    Output(as_json).show(Presented({"a": 1}, ["first"]))


def test_a_warning_about_a_checkpoint_is_one_line_and_printed_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with printed_warnings():
        for _ in range(2):
            warn_about("SRC", "it is strange", "it is read all the same", tensor="w")
    printed = capsys.readouterr()
    assert printed.err == "warning: SRC: tensor 'w': it is strange; it is read all the same\n"
    assert printed.out == ""


def test_that_loops_are_compiled_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with printed_warnings():
        warnings.warn("the loops are compiled", CompilingWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: the loops are compiled\n"


def test_other_warnings_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with printed_warnings(), pytest.warns(DeprecationWarning, match="old"):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert "warning:" not in capsys.readouterr().err


def test_a_program_sees_them_as_its_own_warnings() -> None:
    with pytest.warns(CheckpointWarning, match="SRC: it is strange; it is read all the same"):
        warn_about("SRC", "it is strange", "it is read all the same")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_that_cannot_be_encoded_is_printed_escaped(encoding: str) -> None:
    code = (
        "from plastic_export.cli.console import Output, escape_what_cannot_be_encoded as escape\n"
        "from plastic_export.reporting.tables import Presented\n"
        "escape()\n"
        "Output(False).show(Presented({}, ['mod\\udce8le']))"
    )
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout == b"mod\\udce8le\n"
