import json
import math
from pathlib import Path
from typing import Any

import pytest
from plastic_runtime.log.events import (
    EventLog,
    PlasticityEvent,
    events_table,
    format_bytes,
    read_events,
)


def event(**changes: Any) -> PlasticityEvent:
    fields: dict[str, Any] = {
        "time": 1.5,
        "step": 7,
        "layer": "layers.0.up",
        "action": "grow",
        "rank_before": 2,
        "rank_after": 4,
        "why": "plateau",
        "score": 0.25,
        "bytes_awake": 2048,
        "bytes_asleep": 512,
        "loss_before": 1.0,
    }
    return PlasticityEvent(**(fields | changes))


def test_a_log_file_gives_back_the_events(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log.jsonl")
    events = [event(step=i, loss_after=0.1 * i, why='"quoted" \u00e9\n}') for i in range(3)]
    for e in events:
        log.append(e)
    assert list(log) == events == read_events(tmp_path / "log.jsonl")


def test_each_event_is_one_line_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = EventLog(path)
    for count in (1, 2):
        log.append(event())
        assert len(path.read_text().splitlines()) == count


def test_two_runs_append_to_one_file(tmp_path: Path) -> None:
    for step in range(2):
        EventLog(tmp_path / "log.jsonl").append(event(step=step))
    assert [e.step for e in read_events(tmp_path / "log.jsonl")] == [0, 1]


def test_a_loss_that_is_not_finite_is_null_in_standard_json() -> None:
    line = event(loss_before=math.nan, score=math.inf).to_json()
    fields = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert fields["loss_before"] is None
    assert fields["score"] is None


def test_a_line_cut_by_a_crash_costs_no_other_event(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = EventLog(path)
    log.append(event(step=1))
    path.write_bytes(path.read_bytes() + event(step=2).to_json().encode()[:40])
    assert [e.step for e in read_events(path)] == [1]
    log.append(event(step=3))
    assert [e.step for e in read_events(path)] == [1, 3]


@pytest.mark.parametrize("line", ['{"step": 1}', "[]", "no json", '{"time": }'])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{event().to_json()}\n{line}\n")
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2 is not an event"):
        read_events(path)


def test_an_event_that_cannot_be_written_is_not_kept(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "missing" / "log.jsonl")
    with pytest.raises(FileNotFoundError):
        log.append(event())
    assert len(log) == 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (12_595, "12.3 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**41, "2.0 TiB"),
    ],
)
def test_bytes_read_as_a_person_says_them(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_the_table_has_aligned_columns_and_readable_numbers() -> None:
    rows = events_table([event(), event(layer="a", score=None, loss_after=0.5)]).splitlines()
    assert len(rows) == 4
    columns = {row.index(mark) for row, mark in zip(rows[2:], ("2 -> 4", "2 -> 4"), strict=True)}
    assert columns == {rows[0].index("rank")}
    assert "2.0 KiB" in rows[2]
    assert "1 -> 0.5" in rows[3]


def test_a_table_of_no_events_is_its_header() -> None:
    assert events_table([]).splitlines()[0].split()[0] == "step"
