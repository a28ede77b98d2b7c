"""What is told and what is refused before the work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from plastic_export.cli.command import main
from plastic_export.estimate import limits
from plastic_export.estimate.limits import (
    Estimate,
    Smaller,
    announce,
    check_disk,
    duration,
    sentence,
)
from plastic_export.estimate.speed import Speed, Work

GB = 10**9
LONG = Work(products=1e12)


def test_what_fits_is_told_after_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "measured_speed", lambda: Speed(*4 * [1e9]))
    said: list[str] = []
    announce(Estimate(LONG, 14 * GB // 10, GB // 2), memory=2 * GB, say=said.append)
    assert said == ["about 17 min, 1.4 GB of memory, 0.5 GB of disk"]


def test_what_is_done_at_once_is_not_told_and_costs_no_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(limits, "measured_speed")
    announce(Estimate(Work(products=1e9), GB, 0), say=pytest.fail)


def test_the_first_way_that_fits_is_named() -> None:
    ways = [Smaller("--a 1", 3 * GB), Smaller("--b 2", GB), Smaller("--c 3", GB // 2)]
    with pytest.raises(ValueError, match=r"4\.0 GB are needed, and 2\.0 GB may be used; --b 2"):
        announce(Estimate(LONG, 4 * GB, 0), memory=2 * GB, smaller=ways, say=pytest.fail)
    with pytest.raises(ValueError, match="a machine with more memory is needed"):
        announce(Estimate(LONG, 4 * GB, 0), memory=GB // 4, smaller=ways)


def test_without_an_option_the_machine_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_limit", lambda: GB)
    announce(Estimate(LONG, GB, 0))
    with pytest.raises(ValueError, match=r"1\.0 GB are there"):
        announce(Estimate(LONG, GB + 1, 0))


def test_a_disk_that_is_too_small_is_named(tmp_path: Path) -> None:
    check_disk(tmp_path, 1)
    with pytest.raises(OSError, match=r"bytes may be needed and .* are free") as caught:
        check_disk(tmp_path, 2**60, tmp_path / "file")
    assert caught.value.filename == str(tmp_path / "file")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "1 s"), (59.6, "60 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")],
)
def test_times_have_two_digits(seconds: float, words: str) -> None:
    assert duration(seconds) == words
    assert sentence(Estimate(Work(), 0, 0), seconds).startswith(f"about {words}, ")


COMMANDS = {
    "plan": "SRC --calibration TEXT --window 24 --out PLACE/plan.json",
    "compress": "SRC PLACE/out --keep 0.5",
    "evaluate": "SRC --text TEXT --window 24",
    "heal": "SRC --reference SRC --calibration TEXT --window 24 --out PLACE/healed",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_in_a_line_what_exceeds_its_memory(
    name: str, readable: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    words = COMMANDS[name].replace("SRC", str(readable)).replace("TEXT", str(text))
    with pytest.raises(SystemExit) as ended:
        main([name, *words.replace("PLACE", str(place)).split(), "--memory", "1MB"])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.fullmatch(
        r"error: --memory: about \d+MB are needed, and 1MB may be used; .*\n", error
    )
    assert list(place.iterdir()) == []


def test_a_size_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "SRC", "--text", __file__, "--memory", "lots"])
    assert "a size must be a number of bytes" in capsys.readouterr().err
