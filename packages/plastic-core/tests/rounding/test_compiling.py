"""What is compiled is told once, and a cache that cannot be written stops nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOOPS = """
from plastic_core.rounding.compiling import compiled

@compiled()
def twice(x):
    return x + x

@compiled("int64(int64)")
def four_times(x):
    return twice(twice(x))

@compiled("int64(int64)")
def eight_times(x):
    return twice(four_times(x))
"""
RUN = """
import sys, warnings
if {nowhere}:
    from numba.core.caching import CacheImpl
    CacheImpl._locator_classes = CacheImpl._locator_classes[:1]  # what NUMBA_CACHE_DIR names
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import loops
assert loops.four_times(2) == 8 and loops.eight_times(1) == 8
print(*(f"{{w.category.__name__}}: {{w.message}}" for w in told), sep="\\n", end="")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loops.py").write_text(LOOPS)
    return tmp_path


def lines_told(folder: Path, cache: Path, *, nowhere: bool = False) -> list[str]:
    """What is told in a process that compiles, or need not."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", RUN.format(nowhere=nowhere)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_is_compiled_once_and_told_then(folder: Path) -> None:
    line = "CompilingWarning: the loops of the rounding are compiled, about ten seconds, once"
    assert lines_told(folder, folder / "cache") == [line]
    assert lines_told(folder, folder / "cache") == []


def test_without_a_folder_for_it_it_is_compiled_in_every_run(folder: Path) -> None:
    file = folder / "file"
    file.write_bytes(b"")
    for _ in range(2):
        (line,) = lines_told(folder, file / "cache", nowhere=True)
        assert line.startswith("CompilingWarning: ")
        assert "about ten seconds, in every run: cannot cache function" in line
        assert "Set NUMBA_CACHE_DIR to a folder that can be written" in line


def test_a_damaged_cache_is_compiled_again(folder: Path) -> None:
    lines_told(folder, folder / "cache")
    for file in (folder / "cache").rglob("*.nb?"):
        file.write_bytes(file.read_bytes()[:20])
    (line,) = lines_told(folder, folder / "cache")
    assert "the loops of the rounding are compiled" in line


@pytest.mark.parametrize("module", ["plastic_core", "plastic_core.rounding"])
def test_what_does_not_round_does_not_load_the_compiler(module: str) -> None:
    code = f"import {module}, sys; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
