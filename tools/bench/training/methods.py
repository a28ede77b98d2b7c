"""The methods, each a function from a size and a seed to what came of the run."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from plastic_core import projections
from plastic_runtime import ByteCount, PlasticityManager, Schedule, attach, find_rank_layers

from training.adalora import NAMES, AdaLoraRule, Allocator, svd_layers
from training.setting import HEAD, SCALE, RunResult, Times, TrainingBench, loss

TURNED = 0.7  # chosen on one seed at rank 8 (``--dial``)
ONE_RANK = "plastic, one rank"
DIALLED = f"plastic x {TURNED:g}"


def lora(bench: TrainingBench, rank: int, seed: int, *, head: bool = False) -> list[RunResult]:
    """mlx-lm's LoRA at one rank."""
    model = bench.base()
    mx.random.seed(seed)
    config: dict[str, Any] = {"rank": rank, "scale": SCALE, "dropout": 0.0}
    if head:
        config["keys"] = {p.path for p in projections(model)} | {HEAD}
    linear_to_lora_layers(model, -1, config)
    times = bench.train(model, bench.optimizer(), seed)
    nbytes = trainable_bytes(model)
    name = "lora+head" if head else "lora"
    return [bench.result(name, rank, seed, model, nbytes, nbytes, times)]


def adalora(bench: TrainingBench, rank: int, seed: int) -> list[RunResult]:
    """AdaLoRA that ends at the bytes of a fixed rank, from 1.5 times the rank as in the paper."""
    model = bench.base()
    layers = svd_layers(model, math.ceil(1.5 * rank), bench.options.adalora_scale, seed)
    allocator = Allocator(layers, AdaLoraRule(budget(bench, rank), bench.options.steps))
    optimizer = bench.optimizer()

    def penalized(model: nn.Module, batch: mx.array) -> mx.array:
        penalty = sum((layer.penalty() for layer in layers.values()), mx.array(0.0))
        return loss(model, batch) + allocator.rule.gamma * penalty / len(layers)

    gradient = nn.value_and_grad(model, penalized)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(batch: mx.array) -> tuple[mx.array, Any]:
        value, grads = gradient(model, batch)
        optimizer.update(model, grads)
        return value, grads

    times = Times()
    for done, batch in enumerate(bench.batches(seed), start=1):
        start = time.perf_counter()
        value, grads = step(batch)
        mx.eval(value, state)
        flat: Any = dict(tree_flatten(grads))
        allocator.observe({p: {n: flat[f"{p}.{n}"] for n in NAMES} for p in layers})
        allocator.allocate(done)
        mx.eval(state)
        times.steps.append(time.perf_counter() - start)
    times.between.append(0.0)
    return [bench.result("adalora", rank, seed, model, allocator.nbytes, allocator.first, times)]


def our_runs(
    bench: TrainingBench,
    rank: int,
    seed: int,
    factors: Sequence[float] = (1.0, TURNED),
    *,
    one_rank: bool = False,
) -> list[RunResult]:
    """Ours: every layer and the head, from more bytes than allowed down to those of the rank.

    With ``one_rank`` bytes are counted as in the adapter of stock mlx-lm.

    Returns:
        One result per factor on every ``S``: an interpolation between the base and what was
        trained (Wortsman et al., *Robust fine-tuning of zero-shot models*, arXiv 2109.01903).
    """
    o, model = bench.options, bench.base()
    last = budget(bench, rank)
    also = {HEAD: o.start * o.head * rank} if HEAD in model else {}
    gauge = bench.gauge()
    layers = attach(model, o.start * rank, also=also, gauge=gauge, seed=seed)
    optimizer = bench.optimizer()
    sizes = {path: sum(layer.shape) * layer.U.dtype.size for path, layer in layers.items()}
    count = ByteCount(sizes, one_rank=True) if one_rank else None
    first = sum(layer.nbytes for layer in layers.values())
    first = count({path: layer.rank for path, layer in layers.items()}) if count else first
    schedule = Schedule(max(first, last), last, begin=o.begin, end=o.end, every=o.every)
    probe = bench.probe(seed)
    manager = PlasticityManager(
        model,
        optimizer,
        loss=lambda: loss(model, probe),
        schedule=schedule,
        gauge=gauge,
        count=count,
    )
    times = bench.train(model, optimizer, seed, lambda done: bool(manager.advance(done)))
    if o.verbose:
        print(manager.ranks(), file=sys.stderr)
    parts = {path: layer.factors() for path, layer in find_rank_layers(model).items()}
    found = []
    for factor in factors:
        for path, layer in find_rank_layers(model).items():
            U, S, Vh = parts[path]
            layer.set_factors(U, factor * S, Vh)
        name = ONE_RANK if one_rank else "plastic"
        name = name if factor == 1 else f"{name} x {factor:g}"
        found.append(bench.result(name, rank, seed, model, manager.bytes_awake, first, times))
    return found


METHODS: dict[str, Callable[[TrainingBench, int, int], list[RunResult]]] = {
    "lora": lora,
    "lora+head": partial(lora, head=True),
    "adalora": adalora,
    "plastic": our_runs,
    ONE_RANK: partial(our_runs, one_rank=True, factors=[1.0]),
}


def budget(bench: TrainingBench, rank: int) -> int:
    """Bytes of mlx-lm's LoRA of a rank, on the layers it takes by default."""
    shapes = [p.shape for p in projections(bench.base())]
    return sum(4 * min(rank, *shape) * sum(shape) for shape in shapes)


def trainable_bytes(model: nn.Module) -> int:
    """Bytes of all that trains."""
    trainable = model.trainable_parameters()
    flat: Any = tree_flatten(trainable)
    return sum(array.nbytes for _, array in flat)
