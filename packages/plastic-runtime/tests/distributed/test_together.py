"""Processes that are not alike are refused before the work."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from plastic_core.files import BusyError
from plastic_runtime.distributed import (
    DisagreementError,
    LostConnectionError,
    Team,
    check_alike,
    together,
    working_together,
)
from plastic_runtime.distributed.pulse import Pulse, read_pulse
from plastic_runtime.distributed.watch import STAYS, Watch, early_loss, end_for, folder_of


class Echo(Team):
    """One of two processes; what the other one has is what `change` makes of its own."""

    def __init__(self, **change: Any) -> None:
        super().__init__()
        self.size = 2
        self.change = change

    def gathered(self, value: Any) -> list[Any]:
        if not isinstance(value, dict):
            return [value, value]
        other = {name: self.change.get(name, own) for name, own in value.items()}
        return [value, other]


def test_a_difference_is_named_with_the_process_that_has_it() -> None:
    team = Echo(host="mac2", facts={"versions": {"mlx": "0.32.3"}})
    with pytest.raises(DisagreementError) as raised:
        check_alike(team, Path("plan.json"), {"versions": {"mlx": "0.32.4"}})
    message = str(raised.value)
    assert message.startswith("plan.json: process 0 on ")
    assert "had versions.mlx '0.32.4', process 1 on mac2 has '0.32.3'" in message
    check_alike(Echo(host="mac2"), Path("plan.json"), {"versions": {"mlx": "0.32.4"}})


def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    team = Echo(host="mac2", problem="/data is not the folder that process 0 sees under this name")
    with (
        pytest.raises(DisagreementError, match=r"process 1 on mac2: /data is not .* all machines"),
        working_together(team, tmp_path / "plan.json", {}),
    ):
        pytest.fail("it began")


@pytest.mark.parametrize("team", [Echo(), Team()], ids=["several", "alone"])
def test_what_another_run_works_on_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, team: Team
) -> None:
    monkeypatch.setattr(together, "LISTENS", 60.0)  # a busy machine may be late with the next beat
    place = tmp_path / "plan.json"
    folder = folder_of(place)
    folder.mkdir()
    with (
        Watch(folder, 0, 1),
        pytest.raises(BusyError, match=r"in use by process 0 .* of another run; wait") as raised,
        working_together(team, place, {}),
    ):
        pytest.fail("it began")
    assert raised.value.filename == str(place)
    assert [path.name for path in folder.iterdir()] == ["process-0.json"]


def test_one_alone_leaves_what_several_began_meanwhile(tmp_path: Path) -> None:
    place = tmp_path / "plan.json"
    folder = folder_of(place)
    with working_together(Team(), place, {}):
        folder.mkdir()
        Pulse.of(0).write(folder)
    assert [path.name for path in folder.iterdir()] == ["process-0.json"]


def test_what_a_run_that_was_cut_has_left_is_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "LISTENS", 0.2)
    place = tmp_path / "plan.json"
    folder_of(place).mkdir()
    Pulse.of(0).write(folder_of(place))
    with working_together(Echo(), place, {}):
        pass
    assert not folder_of(place).exists()


def test_who_works_there_is_said_before_all_have_found_the_folder(tmp_path: Path) -> None:
    place, seen = tmp_path / "plan.json", list[Pulse | None]()

    class Looking(Echo):
        def gathered(self, value: Any) -> list[Any]:
            if isinstance(value, dict) and "problem" in value:
                seen.append(read_pulse(folder_of(place), 0))
            return super().gathered(value)

    with working_together(Looking(), place, {}):
        pass
    assert seen == [Pulse.of(0)]


def test_nothing_is_left_of_what_went_well(tmp_path: Path) -> None:
    place = tmp_path / "new" / "plan.json"
    with working_together(Echo(), place, {}):
        assert sorted(path.name for path in folder_of(place).glob("*.json")) == ["process-0.json"]
    assert list(place.parent.iterdir()) == []


class Broken(Team):
    """One of two processes, whose connection breaks after so many gatherings."""

    def __init__(self, gatherings: int, other: Pulse) -> None:
        super().__init__()
        self.size, self.left, self.other = 2, gatherings, other

    def gathered(self, value: Any) -> list[Any]:
        self.left -= 1
        if self.left < 0:
            raise LostConnectionError("[ring] broken")
        return [value, asdict(self.other)]


def ended_process() -> Pulse:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(Pulse.of(1), pid=process.pid)


def test_a_process_that_ends_at_the_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(end_for, "__defaults__", (end,))
    lost = ended_process()
    with pytest.raises(SystemExit) as ended, working_together(Broken(1, lost), tmp_path / "p", {}):
        pytest.fail("it began")
    assert ended.value.code == 5
    assert capfd.readouterr().err == f"error: {lost.name} was killed; {STAYS}\n"


def test_before_all_have_met_a_loss_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_loss, "__defaults__", (0.0,))
    with (
        pytest.raises(LostConnectionError, match=r"was lost at the start \(\[ring\] broken\)"),
        working_together(Broken(0, Pulse.of(1)), tmp_path / "p", {}),
    ):
        pytest.fail("it began")


def test_what_several_left_to_say_is_removed_by_one_that_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "plan.json"
    folder_of(place).mkdir()
    ended_process().write(folder_of(place))
    with working_together(Team(), place, {}):
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_what_mlx_says_of_a_connection_is_told_from_other_errors() -> None:
    for team, said, kind in (
        (Echo(), "[ring] connection to a peer was lost", LostConnectionError),
        (Echo(), "[matmul] shapes do not fit", RuntimeError),
        (Team(), "[ring] connection to a peer was lost", RuntimeError),
    ):
        with pytest.raises(RuntimeError) as raised, team.connected():
            raise RuntimeError(said)
        assert type(raised.value) is kind
        assert str(raised.value) == said
