"""What happens before the ``plastic`` command runs: seconds of imports, which a signal may end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

STOPPED = """
import os, sys

class Stop:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Stop)
{before}
from plastic_command import start
sys.argv = ["plastic", "--version"]
start()
"""


def stopped(module: str, number: int, before: str = "") -> subprocess.CompletedProcess[str]:
    """Start the command in a process that gets a signal when it imports a module."""
    code = STOPPED.format(module=module, number=int(number), before=before)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=900
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["plastic_export", "numpy", "mlx.core", "plastic_export.cli"])
def test_a_signal_during_the_imports_ends_the_command_in_a_line(module: str, number: int) -> None:
    done = stopped(module, number)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "error: interrupted; no output was written\n"


def test_a_signal_that_is_ignored_does_not_end_the_imports() -> None:
    before = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    done = stopped("mlx.core", signal.SIGINT, before)
    assert (done.returncode, done.stderr) == (0, "")
    assert "version" in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["inspect", "SRC"], ["inspect", "SRC", "--json"]])
def test_an_output_without_a_reader_ends_in_a_line(
    words: list[str], write_readable: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = write_readable(tmp_path / "source")
    reader, writer = os.pipe()
    os.close(reader)
    code = "from plastic_command import start; start()"
    named = [str(source) if word == "SRC" else word for word in words]
    with open(writer, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-c", code, *named],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr == (
        "error: the reader of the output was gone before all of it was written (EPIPE)\n"
    )


@pytest.mark.parametrize("words", [["--version"], ["inspect", "SRC"]])
def test_what_rounds_nothing_does_not_wait_for_the_compiler(
    words: list[str], write_readable: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = write_readable(tmp_path / "source")
    tell = "lambda: print('numba' in sys.modules, file=sys.stderr)"
    code = (
        f"import atexit, sys; atexit.register({tell}); from plastic_command import start; start()"
    )
    command = [sys.executable, "-c", code, *(str(source) if w == "SRC" else w for w in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert (done.returncode, done.stderr) == (0, "False\n")
