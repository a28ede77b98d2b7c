"""One writer at a time, and what a dead one left is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from plastic_core.files import (
    HOLDER,
    AtomicFile,
    BusyError,
    FolderLock,
    FormatError,
    Journal,
    check_unheld,
)
from plastic_core.files import check_same as check

HOLD = """
import os, signal, sys
from plastic_core.files import AtomicFile, FolderLock
lock = FolderLock(sys.argv[1])
file = AtomicFile(sys.argv[2])
file.write(b"half")
print("held", flush=True)
if sys.argv[3] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def holder(folder: Path, file: Path, then: str) -> subprocess.Popen[str]:
    """A process that holds a folder and a file until its standard input ends, or dies."""
    words = [sys.executable, "-c", HOLD, str(folder), str(file), then]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    process = holder(tmp_path / "folder", tmp_path / "file", "wait")
    with pytest.raises(BusyError, match=rf"in use by process {process.pid} on .*-c") as caught:
        FolderLock(tmp_path / "folder")
    assert caught.value.filename == str(tmp_path / "folder")
    with pytest.raises(BusyError, match="in use by another process"):
        AtomicFile(tmp_path / "file")
    with pytest.raises(BusyError, match=f"in use by process {process.pid} on"):
        check_unheld(tmp_path / "folder")
    process.communicate()
    check_unheld(tmp_path / "folder")
    FolderLock(tmp_path / "folder").release()
    with AtomicFile(tmp_path / "file") as file:
        file.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_what_a_killed_process_held_is_free_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path / "folder", tmp_path / "file", "die")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / ".file.tmp").read_bytes() == b"half"
    lock = FolderLock(tmp_path / "folder")
    assert json.loads((tmp_path / "folder" / HOLDER).read_text())["pid"] == os.getpid()
    with AtomicFile(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    lock.unsign()
    lock.release()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == []


def test_a_lock_follows_its_folder_and_leaves_the_name_free(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    other = FolderLock(tmp_path / "a")
    with pytest.raises(BusyError):
        FolderLock(tmp_path / "b")
    lock.release()
    lock.release()
    FolderLock(tmp_path / "b").release()
    other.release()


def test_a_folder_behind_a_link_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="link"):
        FolderLock(tmp_path / "link")
    assert os.listdir(tmp_path / "real") == []


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_a_temporary_name_that_is_not_ours_is_not_written_to(tmp_path: Path, kind: str) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    temporary = tmp_path / ".file.tmp"
    if kind == "link":
        temporary.symlink_to("precious")
    elif kind == "hard link":
        os.link(tmp_path / "precious", temporary)
    else:
        os.mkfifo(temporary)
    with pytest.raises((OSError, FormatError), match=r"\.file\.tmp|symbolic"):
        AtomicFile(tmp_path / "file")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "file").exists()


def test_the_cache_of_the_hub_is_not_written_to(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots"
    snapshot.mkdir(parents=True)
    (tmp_path / "alias").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "alias"):
        with pytest.raises(FormatError, match="it lies in the Hub cache"):
            AtomicFile(folder / "file")
    assert os.listdir(snapshot) == []


def write_text(path: Path) -> None:
    with AtomicFile(path) as file:
        file.write(b"new")


def test_an_error_of_the_system_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with AtomicFile(tmp_path / "file") as file:
        file.write(b"old")
    for call in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(OSError, match="No space left") as caught:
                write_text(tmp_path / "file")
        assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


RECORDS = [{"a": 0.1, "b": [1, None]}, {"name": "\n\u00e9"}, {}]


def journal(path: Path) -> Journal:
    with Journal(path) as written:
        for record in RECORDS:
            written.append(record)
    return written


def test_a_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    assert journal(tmp_path / "j").records == RECORDS
    with Journal(tmp_path / "j") as again:
        assert again.records == RECORDS
        again.append({"more": 1})
    with Journal(tmp_path / "j") as again:
        assert again.records == [*RECORDS, {"more": 1}]


def test_a_journal_cut_anywhere_gives_its_whole_lines(tmp_path: Path) -> None:
    journal(tmp_path / "j")
    content = (tmp_path / "j").read_bytes()
    for length in range(len(content)):
        (tmp_path / "j").write_bytes(content[:length])
        with Journal(tmp_path / "j") as cut:
            count = content[:length].count(b"\n")
            assert cut.records == RECORDS[:count]
            cut.append({"next": 1})
        with Journal(tmp_path / "j") as again:
            assert again.records == [*RECORDS[:count], {"next": 1}]


def test_a_journal_with_any_bit_turned_over_is_not_believed_from_there(tmp_path: Path) -> None:
    journal(tmp_path / "j")
    content = (tmp_path / "j").read_bytes()
    for place in range(len(content)):
        turned = bytearray(content)
        turned[place] ^= 1
        (tmp_path / "j").write_bytes(turned)
        with Journal(tmp_path / "j") as read:
            assert read.records == RECORDS[: content[:place].count(b"\n")]


def test_a_difference_is_named_with_both_values(tmp_path: Path) -> None:
    check(tmp_path, {"a": {"b": 1}}, {"a": {"b": 1}}, remedy="stop")
    for there, here, reason in [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, r"had a\.b 1, this one has 2; stop"),
        ({"a": {"b": 1}}, {"a": {}}, r"had a nothing, this one has \{\}"),
        ({"a": 1}, {}, "had a 1, this one has nothing"),
        ({}, {"a": 1}, "had a nothing, this one has 1"),
    ]:
        with pytest.raises(FormatError, match=reason):
            check(tmp_path, there, here, remedy="stop")
