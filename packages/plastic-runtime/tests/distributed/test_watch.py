"""A process that is lost to the others is named once, and ends them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from plastic_runtime.distributed import watch
from plastic_runtime.distributed.pulse import Pulse, here, read_pulse
from plastic_runtime.distributed.watch import Heard, Watch, loss_among, prints

OTHER = Pulse(1, 4711, "mac", "elsewhere")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "EVERY", 0.05)
    monkeypatch.setattr(watch, "GRACE", 0.1)
    monkeypatch.setattr(watch, "SILENT", 0.6)
    monkeypatch.setattr(watch, "SUSPECT", 0.3)


def ended(folder: Path, rank: int = 0) -> tuple[Watch, list[int]]:
    statuses: list[int] = []
    return Watch(folder, rank, 2, end=statuses.append), statuses


def wait_for(statuses: list[int], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not statuses and time.monotonic() < deadline:
        time.sleep(0.02)


def test_one_that_works_is_no_loss() -> None:
    assert loss_among([Heard(OTHER, silent=1.0, is_gone=False)]) is None
    assert loss_among([Heard(replace(OTHER, state="leaves"), silent=90.0, is_gone=True)]) is None


def test_a_failure_is_named_rather_than_one_that_it_silenced() -> None:
    failed = replace(OTHER, rank=2, state="fails", reason="a full disk", status=3)
    loss = loss_among([Heard(OTHER, 99.0, False), Heard(failed, 99.0, False)])
    assert loss is not None
    assert (loss.pulse.rank, loss.reason, loss.status) == (2, "a full disk", 3)


def test_exactly_one_of_the_others_prints() -> None:
    for lost in range(4):
        loss = watch.Loss(replace(OTHER, rank=lost), "was killed", 5)
        assert sum(prints(rank, loss) for rank in range(4) if rank != lost) == 1
    own_words = watch.Loss(replace(OTHER, rank=0, state="fails"), "bad input", 2)
    assert not any(prints(rank, own_words) for rank in range(1, 4))


def test_one_that_says_nothing_ends_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    OTHER.write(tmp_path)
    guard, statuses = ended(tmp_path)
    wait_for(statuses)
    guard.close()
    assert statuses == [watch.INTERRUPTED]
    message = capsys.readouterr().err
    assert message.startswith("error: process 1 (4711 on mac) has not been heard of for ")
    assert message.count("\n") == 1


def test_one_that_was_killed_ends_the_others_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SILENT", 1000.0)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    Pulse(1, child.pid, "mac", here()).write(tmp_path)
    guard, statuses = ended(tmp_path)
    time.sleep(0.2)
    assert statuses == []
    child.kill()
    wait_for(statuses)
    guard.close()
    assert statuses == [watch.INTERRUPTED]
    assert f"process 1 ({child.pid} on mac) was killed" in capsys.readouterr().err
    child.communicate()


def test_one_that_hangs_on_this_machine_is_ended(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    Pulse(1, child.pid, "mac", here()).write(tmp_path)
    guard, statuses = ended(tmp_path)
    wait_for(statuses)
    guard.close()
    assert statuses == [watch.INTERRUPTED]
    child.communicate(timeout=60)
    assert child.returncode == -9


def test_what_a_process_fails_with_is_said_by_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SILENT", 1000.0)
    first, statuses = ended(tmp_path)
    second, _ = ended(tmp_path, 1)
    second.fail("plan.json: a full disk", 3)
    wait_for(statuses)
    first.close()
    assert statuses == [3]
    assert "process 1 " in (message := capsys.readouterr().err)
    assert "failed: plan.json: a full disk; what is finished stays" in message


def test_the_first_may_say_why_it_fails_before_another_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GRACE", 4.0)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    failed = Pulse(0, child.pid, "mac", here(), state="fails", reason="a full disk", status=3)
    failed.write(tmp_path)
    second, statuses = ended(tmp_path, 1)
    deadline = time.monotonic() + 60.0
    while (said := read_pulse(tmp_path, 1)) is None or said.state == "works":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    assert statuses == []
    child.communicate()
    wait_for(statuses)
    second.close()
    assert statuses == [3]


def test_who_leaves_in_order_ends_nobody(tmp_path: Path) -> None:
    second, _ = ended(tmp_path, 1)
    second.leave(None)
    first, statuses = ended(tmp_path)
    time.sleep(0.9)
    first.leave(None)
    assert statuses == []


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    own = replace(Pulse.of(0), state="fails", reason="x" * 5000, status=2)
    own.write(tmp_path)
    Pulse.of(0).next().write(tmp_path)
    own.write(tmp_path)
    found = read_pulse(tmp_path, 0)
    assert found is not None
    assert (found.pid, found.state, len(found.reason)) == (os.getpid(), "fails", 1000)
    (tmp_path / "process-0.json").write_text("{")
    assert read_pulse(tmp_path, 0) is None
