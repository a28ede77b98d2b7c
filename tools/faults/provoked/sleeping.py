"""Runs killed while components are parked and woken; bits flipped in what sleeps."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from plastic_core import Factors, RankLayer
from plastic_core.files import array_bytes
from plastic_export import compress, verify
from plastic_runtime import (
    PlasticityManager,
    SleepStore,
    load_run,
    park,
    save_run,
    verify_store,
    wake,
)

from provoked.child import Child, Ended, in_child
from provoked.outcome import Outcome

SIDE, RANK = 12, 8
LAYERS = ("layers.0", "layers.1")
TRAINED = Path(__file__).parents[3] / "tests-integration" / "data" / "stdlib-llama"
LIFE = 0.4
"""Seconds after which a run is killed at the latest."""


def asleep(quick: bool, work: Path) -> list[Outcome]:
    """kill -9 while parking, waking, saving and compacting; flipped bits in both stores."""
    (work / "run").mkdir()
    return [
        _killed(work / "run", 8 if quick else 200),
        _flipped("a sleep store", work / "store", _store, 20 if quick else 200),
        _flipped("sleep.safetensors", work / "out", _compressed, 20 if quick else 200),
    ]


def _killed(folder: Path, points: int) -> Outcome:
    outcome = Outcome(
        "kill -9 while parking, waking, saving and compacting, again and again in one store",
        "every component in the saved run or asleep, all bits as they were; no stray file",
    )
    rng = random.Random(0)
    in_child(lambda: _work(folder, 0, steps=1))
    with outcome.timed():
        for point in range(points):
            child = Child(partial(_work, folder, point))
            time.sleep(rng.uniform(0, LIFE))
            child.send(signal.SIGKILL)
            ended = child.wait()
            outcome.remark("kills", int(ended.status == -signal.SIGKILL))
            problems = [] if ended.status == -signal.SIGKILL else [ended.printed[-300:]]
            looked = in_child(lambda: _look(folder))
            outcome.remark("components compared", 2 * RANK)
            outcome.count(problems + _lines(looked), f"point {point}")
    return outcome


def _work(folder: Path, seed: int, steps: int = 10**6) -> int:
    """Go on with the run in a folder: park, wake, save and compact until the end comes."""
    rng = random.Random(seed)
    with SleepStore(folder / "sleep") as store:
        model, optimizer, manager = _start(store)
        file = folder / "run.safetensors"
        if file.is_file():
            load_run(file, model, optimizer, manager)
        for _ in range(steps):
            path = rng.choice(LAYERS)
            _move(model.layers[LAYERS.index(path)], path, optimizer, store, rng)
            if rng.random() < 0.4:
                save_run(file, model, optimizer, manager)
            if rng.random() < 0.1:
                store.compact()
        save_run(file, model, optimizer, manager)
    return 0


def _move(
    layer: RankLayer, path: str, optimizer: optim.Optimizer, store: SleepStore, rng: random.Random
) -> None:
    """Park or wake some components of a layer, whose bits do not change."""
    ids = store.ids(path)
    if ids and rng.random() < 0.5:
        chosen = rng.sample(ids, rng.randint(1, len(ids)))
        wake(layer, chosen, path=path, optimizer=optimizer, sleep=store)
    elif layer.rank > 1:
        indices = rng.sample(range(layer.rank), rng.randint(1, layer.rank - 1))
        park(layer, indices, path=path, optimizer=optimizer, sleep=store)


def _start(store: SleepStore) -> tuple[nn.Module, optim.Optimizer, PlasticityManager]:
    """Two layers of random components with their optimizer state; the same every time."""
    rng = np.random.default_rng(1)

    def random_bits(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape).astype(np.float32))

    shapes = (SIDE, RANK), (RANK,), (RANK, SIDE)
    model = nn.Sequential(*(RankLayer(*(random_bits(*s) for s in shapes)) for _ in LAYERS))
    optimizer = optim.Adam(0.0)  # which leaves the parameters as they are
    optimizer.init(model.trainable_parameters())
    for layer in optimizer.state["layers"]:
        for name, shape in zip(("U", "S", "Vh"), shapes, strict=True):
            layer[name] = {leaf: random_bits(*shape) for leaf in "mv"}
    return model, optimizer, PlasticityManager(model, optimizer, sleep=store)


def _look(folder: Path) -> int:
    """Print what is missing or changed after a kill; the number of problems."""
    problems = []
    with SleepStore(folder / "sleep") as store:
        wanted = [_awake(*_start(store)[:2], path) for path in LAYERS]
        model, optimizer, manager = _start(store)
        everything = {p: [_sleeper(store, i) for i in store.ids(p)] for p in LAYERS}
        load_run(folder / "run.safetensors", model, optimizer, manager)
        for path, before in zip(LAYERS, wanted, strict=True):
            awake = _awake(model, optimizer, path)
            sleeping = [_sleeper(store, i) for i in store.ids(path)]
            if sorted(awake + sleeping) != sorted(before):
                lost = len(set(before) - set(awake + sleeping))
                problems.append(f"{path}: {lost} components lost or changed")
            if set(before) - set(awake) - set(everything[path]):
                problems.append(f"{path}: some are neither in the saved run nor on the disk")
    problems += verify_store(folder / "sleep")
    known = ("run.safetensors", "sleep")
    problems += [f"stray file {n}" for n in os.listdir(folder) if n not in known and n[0] != "."]
    problems += [
        f"stray file {n}"
        for n in os.listdir(folder / "sleep")
        if n.endswith(".tmp") or not n.endswith((".safetensors", ".json"))
    ]
    print("\n".join(problems))
    return min(len(problems), 100)


def _awake(model: nn.Module, optimizer: optim.Optimizer, path: str) -> list[bytes]:
    """The bits of every component of a layer and of its optimizer state."""
    place = LAYERS.index(path)
    layer, state = model.layers[place], optimizer.state["layers"][place]
    sides = [layer.U.T, layer.S, layer.Vh]
    for leaf in "mv":
        sides += [state["U"][leaf].T, state["S"][leaf], state["Vh"][leaf]]
    return [b"".join(array_bytes(side[i]).tobytes() for side in sides) for i in range(layer.rank)]


def _sleeper(store: SleepStore, id: int) -> bytes:
    parked = store.get(id)
    arrays = [parked.U, parked.S, parked.Vh]
    for leaf in "mv":
        arrays += [parked.moments[name][leaf] for name in ("U", "S", "Vh")]
    return b"".join(array_bytes(array).tobytes() for array in arrays)


def _flipped(name: str, folder: Path, make: Callable[[Path], int], points: int) -> Outcome:
    """Flip bits of the files asleep in the folder that ``make`` writes in a child."""
    outcome = Outcome(f"a bit flipped in {name}", "found; in data, tensor and component named")
    with outcome.timed():
        outcome.count(_lines(in_child(lambda: make(folder))), "intact")
        files = [f for f in sorted(folder.glob("*.safetensors")) if "model" not in f.name]
        rng = np.random.default_rng(0)
        for _ in range(points):
            file = files[int(rng.integers(len(files)))]
            intact = file.read_bytes()
            place, bit = int(rng.integers(len(intact))), int(rng.integers(8))
            changed = bytearray(intact)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            in_data = place >= 8 + int.from_bytes(intact[:8], "little")
            outcome.remark("in data", int(in_data))
            outcome.count(_found(folder, file, in_data), f"bit {bit} of byte {place}, {file.name}")
            file.write_bytes(intact)
    return outcome


def _store(folder: Path) -> int:
    """A store of two parkings and a release."""
    rng = np.random.default_rng(2)
    shapes = (512, RANK), (RANK,), (RANK, 512)
    with SleepStore(folder) as store:
        for path in LAYERS:
            store.park(path, Factors(*(mx.array(rng.standard_normal(s)) for s in shapes)))
        store.take(LAYERS[0], [0])
        store.release()
    return len(verify_store(folder))


def _compressed(folder: Path) -> int:
    """The trained checkpoint of the repository, compressed by rank."""
    compress(TRAINED, folder, keep=0.5)
    return len(verify(folder))


def _found(folder: Path, file: Path, in_data: bool) -> Sequence[str]:
    defects = verify(folder)
    if len(defects) != 1 or not defects[0].startswith(f"{file}: "):
        return [f"reported {defects}"]
    named = ": tensor '" in defects[0] and ": component " in defects[0]
    return [] if named or not in_data else [f"not named: {defects[0]}"]


def _lines(ended: Ended) -> list[str]:
    """Return what a child printed, if it found anything wrong."""
    return ended.printed.splitlines() or [f"exit {ended.status}"] if ended.status else []
