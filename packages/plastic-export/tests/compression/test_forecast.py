"""What a plan is said to take, beside what it then does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plastic_export.calibration.text import Calibration
from plastic_export.cli.command import main
from plastic_export.compression.forecast import estimate_plan
from plastic_export.compression.planning import plan_checkpoint
from plastic_export.estimate.speed import Speed
from plastic_runtime import GramFile

SPEED = Speed(1e9, 1e9, 1e9, 1e9)


def asked(text: Path) -> dict[str, object]:
    return {"calibration": Calibration(text, window=24, windows=8), "budgets": [4.5]}


def test_it_writes_nothing_and_refuses_what_the_plan_would(
    readable: Path, text: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    file = place / "plan.json"
    estimate_plan(readable, file, **asked(text), speed=SPEED)  # type: ignore[arg-type]
    assert [*place.iterdir()] == []
    file.write_text("mine")
    with pytest.raises(ValueError, match="it exists"):
        estimate_plan(readable, file, **asked(text), speed=SPEED)  # type: ignore[arg-type]


def test_a_calibration_that_is_there_takes_no_time(
    readable: Path, text: Path, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    before = estimate_plan(readable, file, **asked(text), speed=SPEED)  # type: ignore[arg-type]
    plan_checkpoint(readable, file, **asked(text))  # type: ignore[arg-type]
    file.unlink()
    after = estimate_plan(readable, file, **asked(text), speed=SPEED)  # type: ignore[arg-type]
    assert before.phases["calibration"] > 0 == after.phases["calibration"]
    with GramFile(tmp_path / "plan.grams.npz") as grams:
        assert len(grams) > 0


def test_the_command_prints_a_row_for_every_process(
    readable: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"plan {readable} --calibration {text} --window 24 --windows 8 --dry-run --out x.json"
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--processes", "1", "--json"])
    assert ended.value.code == 0
    record = json.loads(capsys.readouterr().out)
    assert [machine["process"] for machine in record["machines"]] == [0]
    assert record["bottleneck"] is None
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--processes", "2"])
    assert ended.value.code == 2
    assert "--processes must be at most 1, the batches of the text, got 2" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("option", ["--processes", "--bandwidth"])
def test_options_of_what_is_foreseen_need_it(
    option: str, readable: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(readable), "--calibration", str(text), option, "2"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {option} needs --dry-run\n"


@pytest.mark.parametrize("bandwidth", ["nan", "inf", "0", "-1", "1e-300", "0.0009", "100001"])
def test_a_network_that_is_none_is_refused(
    bandwidth: str, readable: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(readable), "--calibration", str(text), "--dry-run"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--bandwidth", bandwidth])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --bandwidth must be from 0.001 to 100,000 Gbit/s, got {bandwidth}; give what the "
        "network carries from one machine to the next, 1 for most cables\n"
    )
