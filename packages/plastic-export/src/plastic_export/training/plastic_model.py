"""The model of a run: a plastic part beside every matrix that was chosen and can learn."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from plastic_core import RankLayer
from plastic_core.layer import linear_shape
from plastic_core.linalg import on_cpu
from plastic_runtime import attach
from plastic_runtime.training import adaptable_layers

from plastic_export.adapters.adapter import Adapter
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import chosen_names
from plastic_export.model.load import load_model
from plastic_export.training.adapters import count_run_bytes
from plastic_export.training.data.training_data import TrainingData
from plastic_export.training.default_size import default_size
from plastic_export.training.first_step import FirstStep
from plastic_export.training.settings import GAUGE, HEAD, TrainingOptions
from plastic_export.training.starting_adapter import begin_with, check_trained


class PlasticModel(NamedTuple):
    """A model that trains.

    Attributes:
        model: The model.
        layers: Its layers with a plastic part by path, in the model's order.
        training: How it is trained, with the ceiling that was to be found.
        notes: Lines to say about what is left alone, or smaller than was asked for.
    """

    model: nn.Module
    layers: dict[str, RankLayer]
    training: TrainingOptions
    notes: list[str]


def load_plastic_model(
    checkpoint: Checkpoint,
    rows: TrainingData,
    training: TrainingOptions,
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    start: Adapter | None = None,
) -> PlasticModel:
    """Load a checkpoint with plastic parts on the matrices chosen.

    The first step is tried. Layers whose weight the model itself replaces when it runs, and those
    that no gradient reaches, are left alone.

    Args:
        checkpoint: What is loaded.
        rows: The data.
        training: How to train.
        include: Glob patterns of the matrices to adapt; by default all that can be.
        exclude: Glob patterns of matrices to leave alone.
        start: The adapter to go on from; None to begin with components that change nothing.

    Raises:
        FormatError: If the model cannot be trained.
        ValueError: If no matrix is left, a pattern matches none, or a layer of the adapter is not
            among those that are trained.
    """
    model = load_model(checkpoint.folder)
    if on_cpu():
        model.set_dtype(mx.float32)
    trial = FirstStep(checkpoint, model, rows, training)
    written = trial.written_by_the_model()
    chosen = _chosen(model, written, include, exclude)
    training = training.sized(max(default_size(chosen), _stored_bytes(start)))
    layers = _attached(model, training, chosen)
    if start is not None:
        begin_with(start, layers, training.seed)
    learning = trial.learning(layers)
    if start is not None:
        check_trained(start, learning)
    idle = {path: layer.base for path, layer in layers.items() if path not in learning}
    model.update_modules(tree_unflatten(list(idle.items())))
    notes = [
        *_left_alone("the model itself replaces their weights", written),
        *_left_alone("no gradient reaches them", idle),
        *_without_room(learning, training.rank or 0),
    ]
    return PlasticModel(model, learning, training, notes)


def _chosen(
    model: nn.Module, written: Collection[str], include: Sequence[str], exclude: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Return the shape of every matrix that is to be adapted, by path."""
    shapes = {path: shape for path, shape in _candidates(model).items() if path not in written}
    names = list(shapes)
    chosen = chosen_names(names, default=names, include=include, exclude=exclude) if names else []
    return {path: shapes[path] for path in chosen}


def _attached(
    model: nn.Module, training: TrainingOptions, chosen: Mapping[str, tuple[int, int]]
) -> dict[str, RankLayer]:
    """Put a plastic part beside every matrix that is chosen."""
    inside = [path for path in chosen if not _is_head(path)]
    head = [path for path in chosen if _is_head(path)]
    times = HEAD if training.by_budget or training.max_bytes is None else 1
    ranks = dict.fromkeys(inside, 1) | dict.fromkeys(head, times)
    count = count_run_bytes(chosen, training.max_bytes or 0)
    per_rank = max(1, sum(ranks[path] * count.components[path] for path in ranks))
    besides = count.fixed + sum(count.layers.values())
    rank = training.start_rank(per_rank, besides, head=bool(head))
    also = dict.fromkeys(head, times * rank)
    return attach(model, rank, keys=inside, also=also, gauge=GAUGE, seed=training.seed)


def _stored_bytes(start: Adapter | None) -> int:
    """Return the bytes of an adapter as a run would store it, its zeros and names included."""
    if start is None:
        return 0
    shapes = {path: pair.shape for path, pair in start.layers.items()}
    return count_run_bytes(shapes, sum(pair.nbytes for pair in start.layers.values()))(start.ranks)


def _candidates(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return path and shape of every adaptable layer, an untied head too."""
    modules: list[tuple[str, nn.Module]] = model.named_modules()  # type: ignore[no-untyped-call]
    head = {
        path: module
        for path, module in modules
        if _is_head(path) and isinstance(module, nn.Linear | nn.QuantizedLinear)
    }
    every = adaptable_layers(model) | head
    return {path: linear_shape(module) for path, module in every.items()}


def _is_head(path: str) -> bool:
    return path.rpartition(".")[2] == "lm_head"


def _left_alone(why: str, paths: Collection[str]) -> Iterator[str]:
    if paths:
        first, *others = sorted(paths)
        more = f" and {len(others)} more" if others else ""
        yield f"left alone, as {why}: {first}{more}"


def _without_room(layers: Mapping[str, RankLayer], rank: int) -> Iterator[str]:
    """Name the layers that are too small for the rank that was asked for, in one line."""
    small = [path for path, layer in layers.items() if layer.max_rank < rank]
    if small:
        first = f"{small[0]} {layers[small[0]].max_rank}"
        yield f"{len(small)} layers have no room for rank {rank} and get their full rank: {first}"
