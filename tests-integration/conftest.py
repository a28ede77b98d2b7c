"""The trained checkpoint that the repository ships, and copies of it to spoil."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import pytest
from filelock import FileLock
from launching import free_ports
from plastic_export import (
    BitsPlan,
    Calibration,
    Choices,
    Compressed,
    execute_plan,
    plan_checkpoint,
)
from plastic_export.cli import main
from plastic_export.format import FORMATS

T = TypeVar("T")

DATA = Path(__file__).parent / "data" / "stdlib-llama"
FAULTS = Path(__file__).parents[1] / "tools" / "faults"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """A trained Llama of 0.9 M parameters; read only."""
    return DATA


@pytest.fixture(scope="session")
def calibration() -> Path:
    """Text of the kind it was trained on."""
    return DATA / "calibration.txt"


@pytest.fixture(scope="session")
def heldout() -> Path:
    """Text it was not trained on."""
    return DATA / "heldout.txt"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The random Llama and the rows that the tools that cut runs train on; read only."""
    sys.path.insert(0, str(FAULTS))
    try:
        from tinyrun import TinyRun
    finally:
        sys.path.remove(str(FAULTS))
    folder = tmp_path_factory.mktemp("tiny")
    made = TinyRun(folder / "base", folder / "data")
    made.write()
    return made


class Once(Protocol):
    """``once(name, make)``: what ``make(folder)`` returned, in whichever process it ran first."""

    def __call__(self, name: str, make: Callable[[Path], T]) -> T: ...


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """A function that does slow work once per session, for all processes that run its tests."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def call(name: str, make: Callable[[Path], T]) -> T:
        folder, result = shared / name, shared / f"{name}.pickle"
        with FileLock(shared / f"{name}.lock"):
            if not result.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                result.write_bytes(pickle.dumps(make(folder)))
        found: T = pickle.loads(result.read_bytes())
        return found

    return call


@pytest.fixture(scope="session")
def make_corrected(checkpoint: Path, calibration: Path) -> Callable[[Path], Path]:
    """``make_corrected(out)``: the checkpoint in 4 bits, on backbones of 2 and 3 bits."""

    def make(out: Path) -> Path:
        own = FORMATS["corrected"].choices or Choices()
        plan_checkpoint(
            checkpoint,
            out.with_name("plan.json"),
            calibration=Calibration(calibration, window=64, windows=32),
            budgets=[4.0],
            choices=Choices((2, 3), factor_bits=own.factor_bits, bare=True),
            format="corrected",
        )
        return execute_plan(checkpoint, out, out.with_name("plan.json")).out

    return make


@pytest.fixture
def no_cache() -> Iterator[None]:
    """Buffers that no array of other tests had: MLX gives arrays of its cache larger ones."""
    gc.collect()
    limit = mx.set_cache_limit(0)
    mx.clear_cache()
    yield
    mx.set_cache_limit(limit)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return shutil.copytree(DATA, tmp_path / "copy")


@pytest.fixture(scope="session")
def ask_server() -> Callable[..., Any]:
    """``ask_server(*words)``: what ``mlx_lm.server`` with these words answers to a short prompt."""
    return answer


def answer(*words: object) -> Any:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlx_lm", "server", "--port", port, *words]
    server = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return ask(f"http://127.0.0.1:{port}/v1/completions", server)
    finally:
        server.kill()
        server.wait()


def ask(url: str, server: subprocess.Popen[bytes]) -> Any:
    """Post a prompt, again and again until the server has started."""
    body = json.dumps({"prompt": "def ", "max_tokens": 3}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.URLError:
            time.sleep(0.5)
    pytest.fail("the server did not answer")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The ``plastic`` command in this process: exit status, output, errors."""

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        code = stopped.value.code
        assert isinstance(code, int)
        return code, out, err

    return call


CHOICES: dict[str, Choices] = {  # so that every format has what is its own, in a few seconds
    "mixed": Choices(bits=(2, 3, 4)),
    "corrected": Choices(bits=(2,), factor_bits=(8, 16), bare=True, group_sizes=(64,)),
    "adapter": Choices(bits=(2,), factor_bits=(16,), ranks=(4,), group_sizes=(64,)),
}


@pytest.fixture(scope="session")
def in_every_format(
    checkpoint: Path, calibration: Path, once: Once
) -> dict[str, Compressed[BitsPlan]]:
    """Two blocks at 3.5 bits per weight in every format, from one short calibration."""

    def make(folder: Path) -> dict[str, Compressed[BitsPlan]]:
        file, text = folder / "plan.json", Calibration(calibration, window=64, windows=16)
        written = {}
        for format, choices in CHOICES.items():
            plan_checkpoint(
                checkpoint,
                file,
                calibration=text,
                budgets=[3.5],
                format=format,
                choices=choices,
                include=["*.[23].*"],
                force=True,
            )
            written[format] = execute_plan(checkpoint, folder / format, file)
        return written

    return once("formats", make)
