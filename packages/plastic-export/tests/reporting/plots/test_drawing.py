"""Without matplotlib: ``plan`` plans all the same, ``report`` says what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from plastic_export.cli.command import main
from plastic_export.compression.plan_file import read_plan

HOW = "drawing needs matplotlib; install the extra: pip install 'plastic-export[plots]'"


@pytest.fixture(autouse=True)
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every import of matplotlib fail, as where it is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_plan_writes_its_plan_and_says_that_nothing_was_drawn(
    readable: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--window", "24", "--windows", "4", "--bits", "4", "--include", "*.q_proj"]
    words = ["--calibration", text, "--out", tmp_path / "plan.json", "--bits-per-weight", "8", *few]
    code, printed, errors = run(capsys, "plan", readable, *words)
    assert (code, errors) == (0, "")
    assert f"plot       none: {HOW}" in printed
    assert len(read_plan(tmp_path / "plan.json").matrices) == 2
    assert not (tmp_path / "plan.png").exists()


def test_report_is_refused_in_one_line_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {"time": 0.0, "step": 1, "layer": "a", "action": "grow", "why": "because"}
    event |= {"rank_before": 1, "rank_after": 2, "bytes_awake": 8, "bytes_asleep": 0}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    code, printed, errors = run(capsys, "report", tmp_path / "events.jsonl")
    assert (code, printed, errors) == (2, "", f"error: {HOW}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]
