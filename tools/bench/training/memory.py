"""The memory that a smaller rank frees."""

from __future__ import annotations

import gc
import tempfile

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from plastic_runtime import PlasticityManager, SleepStore, attach
from rich.table import Table

from training.methods import budget
from training.setting import HEAD, TrainingBench, loss


def memory_table(bench: TrainingBench) -> Table:
    """Active memory after a fall in bytes, over that of a run built at the ranks it ends with."""
    rank = bench.options.ranks[0]
    last = budget(bench, rank)
    rows = Table("run", "bytes awake", "active memory", title="Memory", box=None)
    with tempfile.TemporaryDirectory() as folder, SleepStore(folder) as sleep:
        model, gauge = bench.base(), bench.gauge()
        layers = attach(model, 4 * rank, also={HEAD: 12 * rank}, gauge=gauge)
        optimizer, probe = bench.optimizer(), bench.probe(0)
        manager = PlasticityManager(
            model, optimizer, loss=lambda: loss(model, probe), gauge=gauge, sleep=sleep
        )
        before = settled(bench, model, optimizer)
        rows.add_row("before", f"{manager.bytes_awake:,}", f"{before:,}")
        manager.reallocate(last)
        after = settled(bench, model, optimizer)
        ranks = manager.ranks()
        rows.add_row("after", f"{manager.bytes_awake:,}", f"{after:,}")
        del manager, model, layers, optimizer
    model = bench.base()
    layers = attach(model, 0, also=[HEAD])
    for path, layer in layers.items():
        layer.grow(ranks[path], key=mx.random.key(0))
    fresh = settled(bench, model, bench.optimizer())
    rows.add_row("built so", f"{sum(x.nbytes for x in layers.values()):,}", f"{fresh:,}")
    rows.add_row("after / built so", "", f"{after / fresh:.4f}")
    return rows


def settled(bench: TrainingBench, model: nn.Module, optimizer: optim.Optimizer) -> int:
    """Active memory in bytes after a few steps."""
    bench.train(model, optimizer, 0)
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory()
