"""Several processes on one machine: the bytes of one, and an end for all where one is lost."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import mlx.core as mx
import pytest
from launching import LONGEST, PLASTIC, Processes, digests, free_ports, launched

pytestmark = pytest.mark.skipif(not mx.distributed.is_available("ring"), reason="needs the ring")

FEW = ("--window", 64, "--windows", 96, "--bits", "3,4", "--group-size", 64)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, calibration: Path) -> Path:
    """A plan and an output that one process wrote."""
    folder = tmp_path_factory.mktemp("alone")
    file = folder / "plan.json"
    plan = ["plan", checkpoint, "--calibration", calibration, *FEW, "--out", file]
    compress = ["compress", checkpoint, folder / "out", "--plan", file]
    for words in ([*plan, "--bits-per-weight", "3.5,4.2"], [*compress, "--bits-per-weight", 3.5]):
        subprocess.run([str(w) for w in (PLASTIC, *words)], check=True, capture_output=True)
    return folder


def test_ports_are_neighbours_and_none_that_the_system_hands_out() -> None:
    ports = free_ports(3)
    assert ports == [*range(ports[0], ports[0] + 3)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert max(ports) < min(taken.getsockname()[1], 32768)  # Linux's first; others' are above


def planning(checkpoint: Path, calibration: Path, file: Path) -> list[object]:
    words = ["plan", checkpoint, "--calibration", calibration, *FEW]
    return [*words, "--bits-per-weight", "3.5,4.2", "--out", file]


def plan_and_grams(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("plan.json", "plan.grams.npz")]


def test_two_processes_write_the_bytes_of_one(
    alone: Path, tmp_path: Path, checkpoint: Path, calibration: Path
) -> None:
    file = tmp_path / "plan.json"
    done = launched(2, *planning(checkpoint, calibration, file))
    assert done.stdout.count("write it") == 1, done.stderr
    assert plan_and_grams(tmp_path) == plan_and_grams(alone)
    budget = ("--bits-per-weight", 3.5)
    done = launched(2, "compress", checkpoint, tmp_path / "out", "--plan", file, *budget)
    assert done.stdout.count("run it") == 1, done.stderr
    assert digests(tmp_path / "out") == digests(alone / "out")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"plan.json", "plan.grams.npz", "plan.png", "out"}


def wait_for_parts(folder: Path, processes: Processes) -> None:
    """Wait until something is measured, or everything."""
    grams = folder / "plan.grams.npz"
    deadline = time.monotonic() + LONGEST
    while not (Path(f"{grams}.parts", "state.json").exists() or grams.exists()):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes.all)
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_process_that_is_lost_is_named_and_ends_the_others(
    alone: Path, tmp_path: Path, checkpoint: Path, calibration: Path, sent: signal.Signals
) -> None:
    words = planning(checkpoint, calibration, tmp_path / "plan.json")
    processes = Processes(tmp_path, words, words)
    wait_for_parts(tmp_path, processes)
    lost = processes.all[1]
    begun = time.monotonic()
    lost.send_signal(sent)
    (first, second), lines = processes.wait()
    seconds = time.monotonic() - begun
    assert (first, second) == (5, -signal.SIGKILL)
    (line,) = lines
    assert f"process 1 ({lost.pid} on {socket.gethostname()})" in line
    assert "the same command goes on with it" in line
    assert seconds < 60  # 30 on a machine that is not busy with other tests
    assert not (tmp_path / "plan.json").exists()
    codes, lines = Processes(tmp_path, words, words, words).wait()
    assert (codes, lines) == ([0, 0, 0], [])
    assert plan_and_grams(tmp_path) == plan_and_grams(alone)


def test_what_is_not_alike_is_refused_by_all(
    tmp_path: Path, checkpoint: Path, calibration: Path
) -> None:
    words = planning(checkpoint, calibration, tmp_path / "plan.json")
    codes, lines = Processes(tmp_path, words, [*words, "--embeddings", "--widest", 4096]).wait()
    assert codes == [2, 2]
    (line,) = lines
    assert "process 0 on " in line
    assert "had options.widest 16384, process 1 on " in line
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"hosts"}


def test_a_source_that_is_not_the_same_is_refused_by_all(
    tmp_path: Path, copy: Path, checkpoint: Path, calibration: Path
) -> None:
    (weights,) = copy.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    places = [tmp_path / name for name in ("here", "there")]
    for place, source in zip(places, (checkpoint, copy), strict=True):
        shutil.copytree(source, place / "SRC")
    words = planning(Path("SRC"), calibration, tmp_path / "plan.json")
    codes, lines = Processes(tmp_path, words, words, places=places).wait()
    assert codes == [2, 2]
    assert len(lines) == 1
    assert "sha256" in lines[0]
    assert "process 1 on " in lines[0]


def test_a_folder_that_is_not_shared_is_refused_by_all(
    tmp_path: Path, checkpoint: Path, calibration: Path
) -> None:
    places = [tmp_path / name for name in ("here", "there")]
    for place in places:
        place.mkdir()
    words = planning(checkpoint, calibration, Path("plan.json"))
    codes, lines = Processes(tmp_path, words, words, places=places).wait()
    assert [*places[0].iterdir(), *places[1].iterdir()] == []
    assert codes == [2, 2]
    assert len(lines) == 1
    assert "process 1 on " in lines[0]
    assert "is not the folder that process 0 sees" in lines[0]
    assert "all machines share" in lines[0]


def test_other_commands_run_in_one_process(tmp_path: Path, checkpoint: Path) -> None:
    words = ["inspect", checkpoint]
    codes, lines = Processes(tmp_path, words, words).wait()
    assert codes == [2, 2]
    assert lines == [
        "error: inspect runs in one process; mlx.launch is for plan, compress, evaluate, train and "
        "heal, start it without"
    ]
