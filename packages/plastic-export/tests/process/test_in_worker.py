"""A LAPACK that dies, hangs or stops the program is reported, and nothing is lost."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from plastic_export.cli.command import main
from plastic_export.process import in_worker

FAULTS = """
import os, signal, time

def stops(*arguments, **options):
    os._exit(0)

def crashes(*arguments, **options):
    os.kill(os.getpid(), signal.SIGSEGV)

def hangs(*arguments, **options):
    time.sleep(60)
"""

SPECTRUM = "plastic_export.compression.spectra.weighted_spectrum"
ENCODE = "plastic_export.format.factored.FactoredFormat.encode"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """Factorisations that do not come back, in a module that the worker finds."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "lapack_faults.py").write_text(FAULTS)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(in_worker, "PATIENCE", 2.0)
    monkeypatch.setattr(in_worker, "LEAST_WORK", 0.0)
    in_worker._close()
    yield importlib.import_module("lapack_faults")
    in_worker._close()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("stops", "ended with exit status 0 but without a complete result"),
        ("crashes", "was killed by SIGSEGV"),
        ("hangs", "missed its deadline of 2"),
    ],
)
@pytest.mark.parametrize("place", [SPECTRUM, ENCODE])
def test_a_factorisation_that_does_not_come_back_is_exit_1_and_named(
    checkpoint_folder: Path,
    faults: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    how: str,
    place: str,
) -> None:
    fault = getattr(faults, name)
    monkeypatch.setattr(place, staticmethod(fault) if place == ENCODE else fault)
    before = sorted(path.name for path in tmp_path.iterdir())
    start = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        main(["compress", str(checkpoint_folder), str(tmp_path / "out"), "--keep", "0.5"])
    assert stopped.value.code == 1
    assert time.monotonic() - start < 30
    errors = capsys.readouterr().err
    called = "encode" if place == ENCODE else name  # which calls it for several matrices
    assert f"error: The worker process of `{called}` {how}" in errors
    assert "model.layers." in errors
    assert "Traceback" not in errors
    kept = (
        [".out.partial"] if "goes on with it" in errors else []
    )  # the spectra, once they are there
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, *kept])
    assert bool(kept) == (place == ENCODE)


def test_after_a_death_the_next_matrix_is_factorised(faults: ModuleType) -> None:
    with pytest.raises(in_worker.WorkerError):
        in_worker.in_worker(faults.stops, name="w", shape=(2, 2))
    assert in_worker.in_worker(abs, -1, name="w", shape=(2, 2)) == 1


@pytest.mark.usefixtures("faults")
def test_what_is_refused_there_looks_as_if_it_had_been_refused_here() -> None:
    with pytest.raises(ValueError, match="invalid literal") as caught:
        in_worker.in_worker(int, "x", name="w", shape=(2, 2))
    assert not getattr(caught.value, "__notes__", [])


def test_the_worker_is_started_for_what_takes_longer_than_its_start() -> None:
    in_worker._close()
    assert in_worker.in_worker(os.getpid, name="w", shape=(256, 1024)) == os.getpid()
    assert in_worker.in_worker(os.getpid, name="w", shape=(512, 512)) != os.getpid()
