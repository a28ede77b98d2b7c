"""What is printed of a result, and what an interruption of that says."""

from __future__ import annotations

import pytest
from plastic_export.cli.console import DONE, Output
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
