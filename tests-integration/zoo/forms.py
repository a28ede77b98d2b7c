"""Steps from a checkpoint as mlx-lm stores it to one as Hugging Face publishes it.

Each step undoes a part of what a model's ``sanitize`` does: a form is a chain of steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx

Weights = dict[str, mx.array]
Config = dict[str, Any]
Publish = Callable[[Weights, Config], tuple[Weights, Config]]
Step = Callable[[Weights], Weights]


def form(*steps: Step) -> Publish:
    """Chain steps; the configuration stays as it is."""

    def publish(weights: Weights, config: Config) -> tuple[Weights, Config]:
        for step in steps:
            weights = step(weights)
        return weights, config

    return publish


def each(change: Callable[[str, mx.array], Weights]) -> Step:
    """Replace every tensor by the tensors that a function makes of it."""

    def step(weights: Weights) -> Weights:
        changed: Weights = {}
        for name, tensor in weights.items():
            changed |= change(name, tensor)
        return changed

    return step


def rename(*pairs: tuple[str, str]) -> Step:
    """Replace regular expressions in the names, one pair after the other."""

    def change(name: str, tensor: mx.array) -> Weights:
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        return {name: tensor}

    return each(change)


def unstack(stacked: str = "switch_mlp", single: str = "experts") -> Step:
    """Store one tensor for each expert, under ``<single>.<number>`` in place of ``<stacked>``."""

    def change(name: str, tensor: mx.array) -> Weights:
        before, found, after = name.partition(f".{stacked}.")
        if not found:
            return {name: tensor}
        return {f"{before}.{single}.{n}.{after}": expert for n, expert in enumerate(tensor)}

    return each(change)


def transpose(pattern: str, first: int = 1, second: int = 2) -> Step:
    """Swap two axes of the tensors whose names match: torch's convolutions are (C, 1, K)."""

    def change(name: str, tensor: mx.array) -> Weights:
        return {name: tensor.swapaxes(first, second) if re.search(pattern, name) else tensor}

    return each(change)


def subtract_one(pattern: str) -> Step:
    """Store norms around zero; exact in bfloat16 for values between 0.5 and 2."""

    def change(name: str, tensor: mx.array) -> Weights:
        return {name: tensor - 1 if re.search(pattern, name) else tensor}

    return each(change)


def flatten(pattern: str, first: int = 0, last: int = -1) -> Step:
    """Store the tensors whose names match with some axes as one."""

    def change(name: str, tensor: mx.array) -> Weights:
        return {name: tensor.flatten(first, last) if re.search(pattern, name) else tensor}

    return each(change)


def fuse(parts: tuple[str, ...], whole: str, axis: int = -2) -> Step:
    """Concatenate tensors whose names end alike: ``a.gate_proj.weight``, ``a.up_proj.weight``."""

    def step(weights: Weights) -> Weights:
        for name in [name for name in weights if name.endswith(f".{parts[0]}")]:
            owner = name.removesuffix(parts[0])
            tensors = [weights.pop(owner + part) for part in parts]
            weights[owner + whole] = mx.concatenate(tensors, axis=axis)
        return weights

    return step


def join_latent(weights: Weights) -> Weights:
    """Join what latent attention absorbs, ``embed_q`` and ``unembed_out``, to ``kv_b_proj``."""
    for name in [name for name in weights if name.endswith(".embed_q.weight")]:
        owner = name.removesuffix("embed_q.weight")
        keys = weights.pop(name).swapaxes(1, 2)
        values = weights.pop(f"{owner}unembed_out.weight")
        joined = mx.concatenate([keys, values], axis=1)
        weights[f"{owner}kv_b_proj.weight"] = joined.flatten(0, 1)
    return weights


def add(*names: str, rows: int = 64, columns: int = 64) -> Step:
    """Add matrices, and vectors where a name ends in ``norm.weight`` or ``bias``."""

    def step(weights: Weights) -> Weights:
        for name in names:
            is_vector = name.endswith(("norm.weight", "bias", "inv_freq"))
            shape = (columns,) if is_vector else (rows, columns)
            tensor = mx.random.normal(shape, key=mx.random.key(len(name)))
            weights[name] = tensor.astype(mx.bfloat16)
        return weights

    return step


def add_tower(owner: str) -> Step:
    """Add a tower for pictures of one block that mlx-lm leaves out."""
    return add(
        f"{owner}.blocks.0.attn.qkv.weight",
        f"{owner}.blocks.0.mlp.linear_fc1.weight",
        f"{owner}.blocks.0.mlp.linear_fc1.bias",
        f"{owner}.merger.norm.weight",
    )


def add_prediction(block: str) -> Step:
    """Add a block that predicts a further token (MTP), which mlx-lm leaves out."""
    return add(
        f"{block}.enorm.weight",
        f"{block}.eh_proj.weight",
        f"{block}.mlp.gate_proj.weight",
        f"{block}.mlp.up_proj.weight",
        f"{block}.mlp.down_proj.weight",
    )


def repeat_head(weights: Weights) -> Weights:
    """Store the tied embedding a second time as the head."""
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}


def add_rotary(weights: Weights) -> Weights:
    """Add the rotary frequencies that old checkpoints hold for each layer."""
    return add("model.layers.0.self_attn.rotary_emb.inv_freq", columns=8)(weights)
