"""A file is made by one process at a time, and nothing is left of the claim."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from plastic_core.files import BusyError
from plastic_export.folder.claiming import claimed_file

HOLD = """
import sys
from pathlib import Path
from plastic_export.folder.claiming import claimed_file
with claimed_file(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_the_file_and_the_first_one(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        said = f"in use by process {first.pid} on "
        with pytest.raises(BusyError, match=said) as raised, claimed_file(file):
            pytest.fail("it began")
        assert raised.value.filename == str(file)
        with claimed_file(tmp_path / "other.json"):
            pass
        first.send_signal(signal.SIGKILL)
    with claimed_file(file):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_stays_if_something_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "plan.json"
    with claimed_file(file):
        file.write_text("{}")
    assert os.listdir(file.parent) == ["plan.json"]
    with pytest.raises(ValueError, match="no plan"), claimed_file(tmp_path / "a" / "b" / "p.json"):
        raise ValueError("no plan")
    assert os.listdir(tmp_path) == ["new"]
