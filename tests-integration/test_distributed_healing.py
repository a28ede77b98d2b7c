"""Healing in several processes: that of one up to rounding, and of as many to the last bit."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from launching import LONGEST, PLASTIC, Processes, digests, launched
from plastic_export import compress, load_safetensors

pytestmark = pytest.mark.skipif(not mx.distributed.is_available("ring"), reason="needs the ring")

Healing = Sequence[object]


@pytest.fixture
def healing(tiny: Any, calibration: Path, tmp_path: Path) -> Healing:
    """The words of a healing of seconds, all but where it goes."""
    packed = compress(tiny.base, tmp_path / "packed", keep=0.6).out
    words = ["heal", packed, "--reference", tiny.base, "--calibration", calibration]
    return [*words, "--window", 32, "--windows", 32, "--steps", 10, "--batch", 4, "--out"]


def alone(words: Healing, out: Path) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in (PLASTIC, *words, out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_two_processes_heal_as_one(healing: Healing, tmp_path: Path) -> None:
    done = launched(2, *healing, tmp_path / "two")
    assert done.stdout.count("written") == 1, done.stderr
    assert alone(healing, tmp_path / "one").returncode == 0
    measured = [
        json.loads((tmp_path / out / "plastic.json").read_text())["options"]["heal"]
        for out in ("one", "two")
    ]
    assert measured[0]["step"] == measured[1]["step"] > 0
    assert np.isclose(measured[0]["kl_after"], measured[1]["kl_after"], rtol=1e-4)
    first, second = (
        load_safetensors(tmp_path / out / "model.safetensors") for out in ("one", "two")
    )
    assert first.keys() == second.keys()
    for name, array in first.items():
        pair = [np.array(each.astype(mx.float32)) for each in (array, second[name])]
        scale = np.abs(pair[0]).max()
        assert np.abs(pair[0] - pair[1]).max() <= 2**-7 * scale, name  # bfloat16, one step of it
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith("hosts")}
    assert names == {"packed", "one", "two"}


def test_a_healing_that_is_cut_goes_on_to_the_same_bits_with_as_many_processes(
    healing: Healing, tmp_path: Path
) -> None:
    whole, out = [*healing, tmp_path / "whole"], [*healing, tmp_path / "cut"]
    assert Processes(tmp_path, whole, whole).wait() == ([0, 0], [])
    processes, state = Processes(tmp_path, out, out), tmp_path / "cut.heal.safetensors"
    deadline = time.monotonic() + LONGEST
    while not state.exists():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes.all)
        time.sleep(0.01)
    processes.all[0].send_signal(signal.SIGKILL)
    codes, (line,) = processes.wait()
    assert codes == [-signal.SIGKILL, 5]
    assert "process 0 (" in line
    assert "the same command goes on from it, with as many processes" in line
    refused = alone(healing, tmp_path / "cut")
    assert refused.returncode == 2
    assert "had processes 2, this one has nothing" in refused.stderr
    assert Processes(tmp_path, out, out).wait() == ([0, 0], [])
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert not state.exists()


def test_more_processes_than_windows_are_refused(healing: Healing, tmp_path: Path) -> None:
    words = [*healing, tmp_path / "out", "--batch", 1]
    codes, (line,) = Processes(tmp_path, words, words).wait()
    assert codes == [2, 2]
    assert "--batch must be at least the 2 processes, got 1" in line
    assert not (tmp_path / "out").exists()
