"""A few faults of each kind; ``tools/faults/provoke.py`` without ``--quick`` provokes them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[1] / "tools" / "faults" / "provoke.py"
ROWS = [
    "malformed,special",
    "kill,stop",
    "powerloss",
    "calls",
    "full,refused",
    "flips,busy,changed",
    "asleep",
]


@pytest.mark.skipif(sys.platform != "linux", reason="provoked by what Linux offers")
@pytest.mark.parametrize("rows", ROWS)
def test_every_fault_ends_as_it_must(rows: str) -> None:
    command = [sys.executable, FAULTS, "--quick", "--rows", rows]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
