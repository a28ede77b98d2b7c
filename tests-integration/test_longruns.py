"""Long runs do not grow, and the same seed gives the same bytes: the short versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).resolve().parents[1] / "tools" / "faults"


def quick(tool: str, *words: str) -> None:
    command = [sys.executable, str(FAULTS / tool), "--quick", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_open_files_stay_flat() -> None:
    quick("endurance.py")


def test_two_processes_with_one_seed_write_the_same_bytes() -> None:
    quick("repeat.py", "--parts", "compressed", "trained")


@pytest.mark.long
def test_two_processes_with_one_seed_write_the_same_plans() -> None:
    quick("repeat.py", "--parts", "planned")
