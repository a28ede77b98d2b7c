"""Processes that are not alike are refused before the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plastic_runtime.distributed import (
    DisagreementError,
    LostConnectionError,
    NotBegunError,
    Team,
    check_alike,
    working_together,
)
from plastic_runtime.distributed.watch import folder_of


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


def test_nothing_is_left_of_what_went_well(tmp_path: Path) -> None:
    place = tmp_path / "new" / "plan.json"
    with working_together(Echo(), place, {}):
        assert sorted(path.name for path in folder_of(place).glob("*.json")) == ["process-0.json"]
    assert list(place.parent.iterdir()) == []


class Broken(Echo):
    """The others have gone."""

    def gathered(self, value: Any) -> list[Any]:
        raise LostConnectionError("[ring] connection to a peer was lost")


def test_a_process_that_ends_before_the_work_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(NotBegunError, match=r"before the work began \(\[ring\] connection .* again"),
        working_together(Broken(), tmp_path / "plan.json", {}),
    ):
        pytest.fail("it began")
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
