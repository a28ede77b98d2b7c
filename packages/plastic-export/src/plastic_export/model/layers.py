"""The layers of a checkpoint whose weights a plan may choose bits for, and where these lie."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import ROUTERS, Kind, is_packed
from plastic_export.model.stock import stock_model

_BLOCK = re.compile(r".*?\.\d+\.")  # "model.layers.3."


@dataclass(frozen=True)
class Layer:
    """A layer of mlx-lm's model, and the tensors of the checkpoint that hold its weight.

    Attributes:
        name: The name of its weight in mlx-lm's model.
        kind: ``"experts"``: a stack of matrices, one per expert.
        experts: How many are stacked; 0 for a single matrix.
        tensors: The weight's own name, or where a stack is stored one by one, those of the experts.
        is_router: Whether it scores experts: see `is_router`.
    """

    name: str
    kind: Kind = "linear"
    experts: int = 0
    tensors: tuple[str, ...] = ()
    is_router: bool = False

    @property
    def is_apart(self) -> bool:
        """Tell whether the experts of a stack are tensors of their own."""
        return len(self.tensors) > 1


def layers_of(checkpoint: Checkpoint) -> dict[str, Layer]:
    """Return the linear layers, embeddings and stacks of experts of a checkpoint, by weight name.

    Experts that are tensors of their own, as Hugging Face stores them, are found by what mlx-lm's
    ``sanitize`` stacks, run on tensors of one entry each. A stack that it makes in another way, or
    of packed experts, is not among them.

    Raises:
        FormatError: If mlx-lm has no such model, or cannot build one from the configuration.
        ModuleNotFoundError: If mlx-lm is not installed.
    """
    checkpoint.check_plain()
    model, layers = stock_model(checkpoint.config), dict[str, Layer]()
    stacked: Mapping[str, tuple[str, ...]] | None = None
    for path, kind, experts in model.kinds:
        name = f"{path}.weight"
        if name in checkpoint.tensors:
            outputs = checkpoint.shape(name)[0]
            scores = kind == "linear" and is_router(path, outputs, model.kinds)
            layers[name] = Layer(name, kind, experts, (name,), scores)
        elif kind == "experts":
            if stacked is None:
                stacked = _stacked(checkpoint, model.module)
            members = stacked.get(name, ())
            if len(members) == experts:
                layers[name] = Layer(name, kind, experts, members)
    return layers


def is_router(path: str, outputs: int, kinds: Sequence[tuple[str, Kind, int]]) -> bool:
    """Tell whether a linear layer scores the experts of its block rather than feeding them.

    It does if its last part says so, or if it has one output, or as many as a stack in the same
    numbered block has experts, and is no part of the attention.

    Args:
        path: The path of the layer.
        outputs: How many it has.
        kinds: The kinds of all layers of the model.
    """
    block = _BLOCK.match(path)
    if path.rpartition(".")[2] in ROUTERS:
        return True
    if block is None or "att" in path[block.end() :]:
        return False
    counts = {experts for other, _, experts in kinds if experts and other.startswith(block[0])}
    return bool(counts) and outputs in counts | {1}


def split_experts(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Return the stacks whose experts are tensors of their own, by the names of these."""
    return {tensor: m for m in layers.values() if m.is_apart for tensor in m.tensors}


def _stacked(checkpoint: Checkpoint, module: Any) -> dict[str, tuple[str, ...]]:
    """Return what ``sanitize`` makes of the tensors: stacked name to names of its parts."""
    names = list(checkpoint.tensors)
    marks = {
        name: mx.full((1,) * max(1, len(checkpoint.tensors[name].shape)), float(i))
        for i, name in enumerate(names)
    }
    try:
        sanitized: dict[str, mx.array] = module.sanitize(marks)
    except Exception:  # written for whole tensors: then nothing is known of the stacks
        return {}
    stacks = {}
    for name, array in sanitized.items():
        if name in checkpoint.tensors or array.ndim != 3 or array.size != len(array):
            continue
        parts = tuple(names[int(i)] for i in np.asarray(array.astype(mx.float32)).reshape(-1))
        if len(set(parts)) == len(parts) and _alike(checkpoint, parts):
            stacks[name] = parts
    return stacks


def _alike(checkpoint: Checkpoint, names: tuple[str, ...]) -> bool:
    """Tell whether all are plain matrices of one shape and type."""
    infos = [checkpoint.tensors[name] for name in names]
    kinds = {(info.shape, info.dtype) for info in infos}
    packed = any(is_packed(name, checkpoint.tensors) for name in names)
    return len(kinds) == 1 and len(infos[0].shape) == 2 and not packed
