"""Memory and open files of long runs: they must not grow.

    uv run tools/faults/endurance.py             2,000 steps and 500 compressions: four minutes
    uv run tools/faults/endurance.py --quick     a fortieth of it

Training: a model of three ``RankLayer``s under Adam, its sleepers in a ``SleepStore``; every 50
steps a layer shrinks, wakes or grows, and the run is saved. Compressing: a tiny Llama, again and
again in one process, by rank with ``exact``, and restored. What is resident after a tenth of the
run is compared with what is resident at its end.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from plastic_core import RankLayer
from plastic_core.files import write_arrays, write_json
from plastic_export import compress, restore
from plastic_runtime import PlasticityManager, SleepStore, save_run
from provoked.checkpoints import CONFIG
from rich.console import Console
from rich.table import Table

ALLOWED = 0.05
"""Growth of the resident memory from a tenth of a run to its end."""

SIDE, BATCH = 64, 32


class Held(NamedTuple):
    """What the process holds."""

    resident: int
    files: int
    active: int


def held() -> Held:
    """What is held now, as the kernel and MLX count it."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    return Held(resident, len(os.listdir("/proc/self/fd")), mx.get_active_memory())


def held_early_and_late(step: Callable[[int], None], count: int) -> tuple[Held, Held]:
    """Take steps; what is held after a tenth of them, and at the end."""
    early = held()
    for i in range(count):
        step(i)
        if i + 1 == count // 10:
            early = held()
    return early, held()


def training(folder: Path) -> Callable[[int], None]:
    """One step of a run whose ranks change every 50."""
    mx.random.seed(0)
    model = nn.Sequential(*(RankLayer.from_linear(nn.Linear(SIDE, SIDE), 8) for _ in range(3)))
    optimizer = optim.Adam(1e-3)
    store = SleepStore(folder / "sleep")
    manager = PlasticityManager(model, optimizer, sleep=store)
    x = mx.random.normal((BATCH, SIDE), key=mx.random.key(1))
    loss_and_gradient = nn.value_and_grad(model, lambda: mx.square(model(x) - mx.sin(x)).mean())

    def change(turn: int) -> None:
        path = f"layers.{turn % 3}"
        rank = manager.ranks()[path]
        if turn % 2 == 0:
            manager.shrink(path, rank // 2)
        elif asleep := store.ids(path)[: SIDE - rank]:
            manager.wake(path, asleep[:8])
        if manager.ranks()[path] < 4:
            manager.grow(path, 4)
        save_run(folder / "run.safetensors", model, optimizer, manager)
        store.compact()

    def step(i: int) -> None:
        _, gradients = loss_and_gradient()
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if i % 50 == 49:
            change(i // 50)

    return step


def compressing(folder: Path) -> Callable[[int], None]:
    """One compression and restoration of a tiny checkpoint."""
    source = folder / "source"
    source.mkdir()
    write_json(source / "config.json", CONFIG | {"num_hidden_layers": 1})
    write_arrays(source / "model.safetensors", weights(), {"format": "pt"})

    def step(i: int) -> None:
        compress(source, folder / "out", keep=0.5, exact=True, force=True)
        if i % 10 == 0:
            restore(folder / "out", folder / f"restored-{i}")

    return step


def weights() -> dict[str, mx.array]:
    """A random Llama of one block, in bfloat16."""
    block = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.0.{name}.weight": shape for name, shape in block.items()
    }
    shapes |= {f"model.layers.0.{n}_layernorm.weight": (32,) for n in ("input", "post_attention")}
    shapes |= {"model.embed_tokens.weight": (40, 32), "lm_head.weight": (40, 32)}
    shapes["model.norm.weight"] = (32,)
    rng = np.random.default_rng(0)
    return {n: mx.array(rng.standard_normal(s)).astype(mx.bfloat16) for n, s in shapes.items()}


def main() -> int:
    """Print one row per run; 1 if one grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fortieth of the runs")
    quick = parser.parse_args().quick
    if sys.platform != "linux":
        parser.error("it reads /proc, which only Linux has")
    table = Table("run", "times", "resident, MB", "growth", "open files", "active in MLX, MB", "s")
    grown = False
    for name, make, count in (
        ("training with rank changes", training, 2000),
        ("compressing and restoring", compressing, 500),
    ):
        count = max(20, count // 40) if quick else count
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            early, end = held_early_and_late(make(Path(folder)), count)
        growth = end.resident / early.resident - 1
        grown |= growth > ALLOWED or end.files > early.files
        table.add_row(
            name,
            f"{count:,}",
            f"{early.resident / 1e6:.1f} -> {end.resident / 1e6:.1f}",
            f"{growth:+.1%}",
            f"{early.files} -> {end.files}",
            f"{early.active / 1e6:.2f} -> {end.active / 1e6:.2f}",
            f"{time.perf_counter() - start:.0f}",
        )
    Console(width=120, highlight=False).print(table)
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
