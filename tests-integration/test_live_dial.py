"""The shipped checkpoint turned while stock mlx-lm runs it: bits, memory, bytes read, tokens."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as stock_load
from plastic_core.files import array_bytes, open_safetensors
from plastic_export import (
    Calibration,
    SizeRange,
    compress,
    execute_plan,
    plan_checkpoint,
)
from plastic_runtime import Dial

TOKENS = [5, 300, 41, 7, 99, 12, 450, 3]
RANGE = SizeRange(3, 3.5)
TURNS = 1000


@pytest.fixture(scope="session")
def folders(
    checkpoint: Path, calibration: Path, once: Callable[..., dict[str, Path]]
) -> dict[str, Path]:
    """The shipped checkpoint in both formats: for a range of sizes, and by rank."""

    def make(place: Path) -> dict[str, Path]:
        plan = place / "plan.json"
        plan_checkpoint(
            checkpoint,
            plan,
            calibration=Calibration(calibration, window=64, windows=32),
            budgets=RANGE.sizes,
            format="corrected",
        )
        corrected = execute_plan(checkpoint, place / "corrected", plan, sizes=RANGE).out
        return {
            "corrected": corrected,
            "factored": compress(checkpoint, place / "factored", keep=0.8).out,
        }

    return once("live-dial", make)


@pytest.fixture(params=["corrected", "factored"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    """Either of them."""
    return folders[request.param]


def loaded(folder: Path, **size: Any) -> nn.Module:
    model, _ = stock_load(
        folder, trust_remote_code=True, model_config={"plastic_dial": size or None}
    )
    return model


def bits_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Every parameter as integers."""
    return {k: array_bytes(v).copy() for k, v in tree_flatten(model.parameters())}


def differing(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> int:
    """How many bits differ."""
    assert a.keys() == b.keys()
    return sum(int(np.bitwise_count(a[name] ^ b[name]).sum()) for name in a)


@pytest.fixture
def load(folder: Path) -> Iterator[list[int]]:
    """Two threads that read the folder again and again, and one that multiplies."""
    stop, rounds = threading.Event(), [0, 0, 0]

    def read(place: int) -> None:
        while not stop.wait(0.01):
            for file in sorted(folder.glob("*.safetensors")):
                with open_safetensors(file) as opened:
                    for info in opened.header.tensors.values():
                        opened.read(info)
            rounds[place] += 1

    def multiply() -> None:
        x = np.ones((256, 256), np.float32)
        while not stop.wait(0.001):
            x = x @ x / 256
            rounds[2] += 1

    threads = [threading.Thread(target=read, args=(i,)) for i in (0, 1)]
    threads.append(threading.Thread(target=multiply))
    for thread in threads:
        thread.start()
    yield rounds
    stop.set()
    for thread in threads:
        thread.join()


def test_a_thousand_turns_under_load_lose_no_bit(folder: Path, load: list[int]) -> None:
    model = loaded(folder)
    start, random = bits_of(model), np.random.default_rng(0)
    with Dial(model, folder) as dial:
        now = dial.nbytes
        for _ in range(TURNS):
            dial.to(bytes=int(random.integers(dial.least, dial.largest + 1)))
        dial.to(bytes=now)
    assert differing(bits_of(model), start) == 0
    assert all(load)


def test_memory_is_that_of_a_model_loaded_at_that_size(folder: Path, no_cache: None) -> None:
    bits_of(loaded(folder))  # once, for what MLX and mlx-lm keep of the first one
    gc.collect()
    before = mx.get_active_memory()
    model = loaded(folder)
    with Dial(model, folder) as dial:
        sizes = [stop.asked for stop in dial.curve(4)]
        for size in [*sizes, *reversed(sizes)]:
            dial.to(bytes=size)
            gc.collect()
            mx.clear_cache()
            both = mx.get_active_memory()
            other = loaded(folder, bytes=size)
            alone = mx.get_active_memory() - both
            assert differing(bits_of(model), bits_of(other)) == 0
            del other
            mx.clear_cache()
            held = mx.get_active_memory()
            assert held == both
            assert abs(alone - dial.nbytes) <= 0.02 * dial.nbytes
            assert abs(held - before - alone) <= 0.02 * alone


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system counts no bytes")
def test_only_what_is_awake_is_read(folders: dict[str, Path]) -> None:
    folder = folders["corrected"]  # a component is a row there

    def read_by(**size: Any) -> int:
        before = int(Path("/proc/self/io").read_text().split()[1])
        loaded(folder, **size)
        return int(Path("/proc/self/io").read_text().split()[1]) - before

    with Dial(loaded(folder), folder) as dial:
        read_by(bytes=dial.largest)  # once, for what Python imports
        sizes = [stop.asked for stop in dial.curve(5)][:-1]
        read = [read_by(bytes=size) for size in sizes]
        assert (
            np.diff(read).tolist() == np.diff([stop.nbytes for stop in dial.curve(5)[:-1]]).tolist()
        )
        assert read[-1] - read[0] > 0.5 * (dial.largest - dial.least)


def next_logits(model: nn.Module, token: int, cache: list[Any]) -> mx.array:
    logits = model(mx.array([[token]]), cache=cache)[0, -1]
    mx.eval(logits)
    return logits


def test_it_is_turned_between_two_tokens_and_the_cache_stays(folder: Path) -> None:
    model = loaded(folder)
    cache = make_prompt_cache(model)
    with Dial(model, folder) as dial:
        dial.to(fraction=1.0)
        model(mx.array([TOKENS]), cache=cache)
        for size in (dial.least, dial.largest, (dial.least + dial.largest) // 2):
            dial.to(bytes=size)
            other = deepcopy(cache)
            ours = next_logits(model, 17, cache)
            theirs = next_logits(loaded(folder, bytes=size), 17, other)
            assert mx.array_equal(ours.view(mx.uint16), theirs.view(mx.uint16)).item()
    assert all(layer.offset == len(TOKENS) + 3 for layer in cache)


def test_a_compiled_step_is_compiled_anew_by_itself(folder: Path) -> None:
    model, traced = loaded(folder), []

    def step(x: mx.array) -> mx.array:
        traced.append(x.shape)
        return model(x)

    compiled, x = mx.compile(step, inputs=model.state), mx.array([TOKENS])
    with Dial(model, folder) as dial:
        for size in (dial.least, dial.largest, dial.largest, dial.least):
            dial.to(bytes=size)
            ours, theirs = (f(x).astype(mx.float32) for f in (compiled, loaded(folder, bytes=size)))
            assert mx.abs(ours - theirs).max().item() <= 2e-2 * mx.abs(theirs).max().item()
    assert 2 <= len(traced) <= 3
