"""``plastic train`` under a ceiling: its parts with its defaults, in the loop of all others.

The ceiling is the file of mlx-lm's LoRA of the rank. Where no option says otherwise, the rank at
the start, the step of the cut, the gauge and the count of bytes are those of the command.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from kept.measurements import Figures
from plastic_core import RankLayer, projections
from plastic_core.factors import as_arrays, descent_directions
from plastic_core.layer import linear_shape
from plastic_export import Adapter, TrainingOptions, write_adapter
from plastic_export.training import GAUGE, round_as_stored
from plastic_runtime import (
    ByteCount,
    Gauge,
    PlasticityManager,
    attach,
    find_rank_layers,
    gradient_factors,
)
from training.setting import HEAD, TrainingBench, loss

from finetune.stock import measured_adapter, pace, stock_bytes

FULL, HALF = 4, 2  # bytes of an entry: mlx-lm's, and those that ``plastic train`` writes
LONGER = 4  # bytes of a layer's place in the header where ranks have more digits
TIMES_THE_HEAD = 3  # the rank of an untied head at the start, as ``plastic train`` has it


def plastic_train(bench: TrainingBench, rank: int, seed: int) -> Figures:
    """Begin with what fits, or larger where there is a head, cut once to the bytes, train on."""
    o, model, ceiling = bench.options, bench.base(), stock_bytes(bench, rank)
    shapes = [p.shape for p in projections(model)]
    entries, head = sum(map(sum, shapes)), HEAD in model
    factors = FULL * rank * entries
    asked = TrainingOptions(
        steps=o.steps,
        batch=o.batch,
        max_bytes=ceiling,
        evaluate_every=o.every,
        rank=o.start and o.start * (factors // (HALF * entries)),
    )
    gauge = asked_gauge(o.norm)
    more = TIMES_THE_HEAD * sum(linear_shape(model[HEAD])) if head else 0
    besides = ceiling - factors + LONGER * len(shapes)
    begun = asked.start_rank(HALF * (entries + more), besides, head=head)
    also = {HEAD: TIMES_THE_HEAD * begun} if head else {}
    layers = attach(model, begun, also=also, gauge=gauge, seed=seed)
    if o.along:
        begin_along_gradient(bench, model, layers, gauge, seed)
    count = file_count(layers, header=ceiling - factors)
    most = count({path: layer.rank for path, layer in layers.items()})
    optimizer, probe = bench.optimizer(cautious=True), bench.probe(seed)
    manager = PlasticityManager(
        model,
        optimizer,
        loss=lambda: loss(model, probe),
        schedule=asked.schedule(most),
        gauge=gauge,
        count=count,
    )
    times = bench.train(model, optimizer, seed, lambda done: bool(manager.advance(done)))
    rounded = Adapter(round_as_stored(find_rank_layers(model)))
    with tempfile.TemporaryDirectory() as folder:
        made = write_adapter(rounded, Path(folder) / "adapter", "mlx")
        found = measured_adapter(bench, made)
    return found | pace(times) | {"most": most, "ranks": manager.ranks()}


def asked_gauge(length: float | None) -> Gauge:
    """Return the gauge of the command; at another length a step of ``U`` is still the same."""
    if length is None:
        return GAUGE
    return replace(GAUGE, length=length, scale=GAUGE.scale * GAUGE.length / length)


def begin_along_gradient(
    bench: TrainingBench,
    model: nn.Module,
    layers: Mapping[str, RankLayer],
    gauge: Gauge,
    seed: int,
) -> None:
    """Lay the rows of ``Vh`` along the gradient before the first step.

    After Wang, Yu and Li, *LoRA-GA*, arXiv 2407.05000, without its other half: ``U`` stays zero,
    so that the base is not changed.
    """
    probe = bench.probe(seed)
    passing = gradient_factors(model, lambda: loss(model, probe))
    for path, layer in layers.items():
        U, _, Vh = as_arrays(layer.factors())
        inputs, gradients = passing[path]
        found = descent_directions(U[:, :0], Vh[:0], layer.rank, gradients, inputs)
        layer.set_factors(*gauge.fresh(layer, mx.array(found[1]), layer.rank))


def file_count(layers: Mapping[str, RankLayer], *, header: int) -> ByteCount:
    """Return the bytes of the stock file at any ranks.

    Args:
        layers: All layers by path.
        header: Bytes of the names and places of all of them.
    """
    sizes = {path: HALF * sum(layer.shape) for path, layer in layers.items()}
    each = math.ceil(header / len(layers)) + LONGER
    return ByteCount(sizes, dict.fromkeys(layers, each), one_rank=True)
