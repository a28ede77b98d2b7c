"""The progress bar: silent unless it is needed, and never in the way of the items."""

from __future__ import annotations

import io

import pytest
from plastic_export.cli import bar
from plastic_export.cli.bar import ProgressBar
from rich.console import Console


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=80), stream


@pytest.mark.parametrize("terminal", [True, False])
def test_every_item_passes_and_quick_work_is_silent(terminal: bool) -> None:
    target, stream = console(terminal)
    assert list(ProgressBar(target)([1, 2, 3], "counting")) == [1, 2, 3]
    assert stream.getvalue() == ""


def test_long_work_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bar, "PATIENCE", -1.0)
    target, stream = console(True)
    assert list(ProgressBar(target)([1, 2, 3], "counting")) == [1, 2, 3]
    assert "counting" in stream.getvalue()
    target, stream = console(False)
    list(ProgressBar(target)([1, 2, 3], "counting"))
    assert stream.getvalue() == ""
