"""Training in several processes: the run of one up to rounding, and of as many to the last bit."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from launching import LONGEST, PLASTIC, Processes, digests, launched
from plastic_export import read_adapter
from plastic_runtime import read_events, read_losses
from plastic_runtime.log import CHANGES
from plastic_runtime.training import read_run

pytestmark = pytest.mark.skipif(not mx.distributed.is_available("ring"), reason="needs the ring")

FEW = ("--steps", 24, "--batch", 4, "--evaluate-every", 4, "--evaluate-batches", 2)
ROUNDING = 2e-5  # nats: losses of the two runs below differ by 1e-6
NOT_TIMED = ("adapters", "best", "peft", "losses.jsonl", "plastic-run.json", "plastic-sizes.json")


def training(tiny: Any, out: Path, *more: object) -> list[object]:
    words = ["train", tiny.base, "--data", tiny.data, "--out", out, "--window", 32]
    return [*words, *FEW, "--max-size", "12KB", *more]


@pytest.fixture(scope="module")
def whole(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    words = training(tiny, folder / "run")
    assert Processes(folder, words, words).wait() == ([0, 0], [])
    return folder / "run"


def rows(folder: Path, text: str) -> Path:
    folder.mkdir()
    for name, first, count in (("train", 0, 24), ("valid", 24, 6)):
        lines = (text[200 * i : 200 * i + 60 + 20 * (i % 7)] for i in range(first, first + count))
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder


def test_plan_compress_and_train_in_two_processes(
    tmp_path: Path, checkpoint: Path, calibration: Path
) -> None:
    plan, base = tmp_path / "plan.json", tmp_path / "base"
    small = ("--window", 64, "--windows", 40, "--bits", "4", "--group-size", 64)
    words = (
        "plan",
        checkpoint,
        "--calibration",
        calibration,
        *small,
        "--include",
        "*.3.mlp.*",
        "--keep",
        0.9,
    )
    assert "write it" in launched(2, *words, "--out", plan).stdout
    assert "run it" in launched(2, "compress", checkpoint, base, "--plan", plan).stdout

    data = rows(tmp_path / "data", calibration.read_text())
    options = ("--window", 64, *FEW[2:], "--steps", 8, "--max-size", "80KB")
    words = ("train", base, "--data", data, *options, "--out")
    done = launched(2, *words, tmp_path / "two")
    assert done.stdout.count("written") == 1, done.stderr
    assert done.stderr.count("step 8/8") == 1, done.stderr
    one = [str(word) for word in (PLASTIC, *words, tmp_path / "one")]
    subprocess.run(one, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} >= {"one", "two"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    assert_alike_up_to_rounding(tmp_path / "one", tmp_path / "two")
    model, tokenizer = mlx_lm.load(str(base), adapter_path=str(tmp_path / "two" / "adapters"))
    text = mlx_lm.generate(model, tokenizer, prompt="def ", max_tokens=3)
    assert isinstance(text, str)


def assert_alike_up_to_rounding(one: Path, two: Path) -> None:
    """The same steps and ranks, which differ by layer, and nearly the same losses and adapters."""
    losses = [read_losses(run / "losses.jsonl") for run in (one, two)]
    assert [(r.kind, r.step) for r in losses[0]] == [(r.kind, r.step) for r in losses[1]]
    values = [np.array([r.loss for r in records]) for records in losses]
    assert np.abs(values[0] - values[1]).max() < ROUNDING
    first, second = (read_adapter(run / "adapters").layers for run in (one, two))
    ranks = [{path: pair.rank for path, pair in each.items()} for each in (first, second)]
    assert ranks[0] == ranks[1]
    assert len({*ranks[0].values()}) > 1 or len(ranks[0]) < len(ranks_at_the_start(one))
    for path, pair in first.items():
        products = [
            np.array(p.B.astype(mx.float32) @ p.A.astype(mx.float32)) for p in (pair, second[path])
        ]
        # Factors are written in float16.
        assert np.abs(products[0] - products[1]).max() < 4e-3 * np.abs(products[0]).max()


def ranks_at_the_start(run: Path) -> dict[str, int]:
    ranks: dict[str, int] = json.loads((run / "plastic-run.json").read_text())["ranks"]
    return ranks


def assert_the_same_bits(run: Path, whole: Path) -> None:
    """What two runs wrote, but for the times that events took."""
    found = [{n: d for n, d in digests(f).items() if n.startswith(NOT_TIMED)} for f in (run, whole)]
    assert found[0] == found[1]
    changes = [changes_of(f) for f in (run, whole)]
    assert changes[0] == changes[1] != []
    for file in (whole / "generations").iterdir():
        arrays, others = (read_run(f / "generations" / file.name)[0] for f in (run, whole))
        assert arrays.keys() == others.keys()
        assert all(bytes(memoryview(arrays[n])) == bytes(memoryview(others[n])) for n in arrays)


def newest_step(run: Path) -> int:
    """The step of the newest state, of which only the last few stay; -1 without any."""
    states = (run / "generations").glob("step-*.safetensors")
    return max((int(state.stem.removeprefix("step-")) for state in states), default=-1)


def changes_of(run: Path) -> list[tuple[int, str, int]]:
    events = [e for e in read_events(run / "events.jsonl") if e.action in CHANGES]
    return [(e.step, e.layer, e.rank_after) for e in events]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_process_that_is_lost_ends_the_others_and_the_run_goes_on_to_the_same_bits(
    tiny: Any, whole: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "run"
    words = training(tiny, out)
    processes = Processes(tmp_path, words, words)
    deadline = time.monotonic() + LONGEST
    while not newest_step(out) >= 8:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes.all)
        time.sleep(0.01)
    lost = processes.all[1]
    lost.send_signal(sent)
    codes, (line,) = processes.wait()
    assert codes == [5, -signal.SIGKILL]
    assert f"process 1 ({lost.pid} on {socket.gethostname()})" in line
    assert "the same command goes on from it, with as many processes" in line
    assert not (out / "adapters").exists()

    alone = subprocess.run(
        [str(word) for word in (PLASTIC, *words)], capture_output=True, text=True, check=False
    )
    assert alone.returncode == 2
    assert "had processes 2, this one has nothing" in alone.stderr
    assert Processes(tmp_path, words, words).wait() == ([0, 0], [])
    assert_the_same_bits(out, whole)


def test_what_cannot_be_dealt_out_or_is_not_alike_is_refused_by_all(
    tiny: Any, tmp_path: Path
) -> None:
    words = training(tiny, tmp_path / "run", "--batch", 3)
    codes, (line,) = Processes(tmp_path, words, words).wait()
    assert codes == [2, 2]
    assert "--batch must be divisible by the 2 processes, got 3; give 2 or 4" in line

    words = training(tiny, tmp_path / "run")
    codes, (line,) = Processes(tmp_path, words, [*words, "--seed", 1]).wait()
    assert codes == [2, 2]
    assert "had options.training.seed 0, process 1 on " in line

    places = [tmp_path / name for name in ("here", "there")]
    for place in places:
        shutil.copytree(tiny.data, place / "data")
    with (places[1] / "data" / "valid.jsonl").open("a") as file:
        file.write('{"text": "one row more"}\n')
    words[words.index(tiny.data)] = "data"
    codes, (line,) = Processes(tmp_path, words, words, places=places).wait()
    assert codes == [2, 2]
    assert "had run.valid data " in line
    assert "process 1 on " in line
    assert not (tmp_path / "run").exists()


def test_growth_shrink_and_waking_are_those_of_one_process_and_of_the_first_alone(
    tiny: Any, tmp_path: Path
) -> None:
    words = [Path(__file__).with_name("planned_training.py"), tiny.base, tiny.data]
    python = Path(sys.executable)
    for out, processes in (("one", 1), ("two", 2)):
        each = [[*words, tmp_path / out]] * processes
        codes = Processes(tmp_path, *each, program=python).wait()
        assert codes == ([0] * processes, [])
    changes = [changes_of(tmp_path / out) for out in ("one", "two")]
    assert changes[0] == changes[1]
    logged = read_events(tmp_path / "two" / "events.jsonl")
    assert {event.action for event in logged} >= {"grow", "shrink", "wake"}
    losses = [read_losses(tmp_path / out / "losses.jsonl") for out in ("one", "two")]
    values = [np.array([r.loss for r in records]) for records in losses]
    assert np.abs(values[0] - values[1]).max() < ROUNDING


def test_a_single_other_bit_ends_all_and_names_process_and_layer(tiny: Any, tmp_path: Path) -> None:
    script, out = Path(__file__).with_name("planned_training.py"), tmp_path / "run"
    words = [script, tiny.base, tiny.data, out, 8]
    codes, (line,) = Processes(tmp_path, words, words, program=Path(sys.executable)).wait()
    assert codes == [2, 2]
    assert f"{out}: process 1 on {socket.gethostname()} has other numbers than process 0" in line
    assert "in the layer 'model.layers.1.mlp.up_proj', found after step 8" in line
    saved = sorted(path.name for path in (out / "generations").iterdir())
    assert saved == ["step-000000000.safetensors", "step-000000004.safetensors"]
