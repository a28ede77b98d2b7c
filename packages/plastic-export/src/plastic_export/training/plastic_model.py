"""The model of a run: a plastic part beside every matrix that was chosen and can learn."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

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
from plastic_export.training.data import TrainingData
from plastic_export.training.first_step import FirstStep
from plastic_export.training.settings import GAUGE, HEAD, TrainingOptions
from plastic_export.training.starting_adapter import begin_with, check_trained


def load_plastic_model(
    checkpoint: Checkpoint,
    rows: TrainingData,
    training: TrainingOptions,
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    start: Adapter | None = None,
) -> tuple[nn.Module, dict[str, RankLayer], list[str]]:
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

    Returns:
        The model; the layers by path, in the model's order; and lines to say about what is left
        alone, or smaller than was asked for.

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
    layers = _attached(model, training, written, include, exclude)
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
    return model, learning, notes


def _attached(
    model: nn.Module,
    training: TrainingOptions,
    written: Collection[str],
    include: Sequence[str],
    exclude: Sequence[str],
) -> dict[str, RankLayer]:
    """Put a plastic part beside every matrix that is chosen."""
    sizes = {path: size for path, size in _candidates(model).items() if path not in written}
    names = list(sizes)
    chosen = chosen_names(names, default=names, include=include, exclude=exclude) if names else []
    inside = [path for path in chosen if not _is_head(path)]
    head = [path for path in chosen if _is_head(path)]
    times = HEAD if training.by_budget or training.max_bytes is None else 1
    each = sum(sizes[path] for path in inside) + times * sum(sizes[path] for path in head)
    rank = training.start_rank(max(1, each))
    also = dict.fromkeys(head, times * rank)
    return attach(model, rank, keys=inside, also=also, gauge=GAUGE, seed=training.seed)


def _candidates(model: nn.Module) -> dict[str, int]:
    """Return path and bytes of a component of every adaptable layer, an untied head too."""
    modules: list[tuple[str, nn.Module]] = model.named_modules()  # type: ignore[no-untyped-call]
    head = {
        path: module
        for path, module in modules
        if _is_head(path) and isinstance(module, nn.Linear | nn.QuantizedLinear)
    }
    every = adaptable_layers(model) | head
    factor = mx.float32.size
    return {path: factor * (sum(linear_shape(module)) + 1) for path, module in every.items()}


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
