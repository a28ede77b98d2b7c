"""The projection matrices of a transformer, found by type and reported by path."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from plastic_core.layer.mlx_linear import is_stack, linear_shape
from plastic_core.layer.rank_layer import RankLayer

NAMES = {
    "q": ("q_proj", "c_q", "wq", "query", "attn_query"),
    "k": ("k_proj", "c_k", "wk", "key", "attn_key"),
    "v": ("v_proj", "c_v", "wv", "value", "attn_value"),
    "o": ("o_proj", "wo", "attn_out", "attn_resid"),
    "qkv": ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "W_pack", "att_proj"),
    "gate": ("gate_proj", "c_fc_0", "mlp_gate"),
    "up": ("up_proj", "c_fc", "c_fc_1", "fc1", "fc_in", "dense_h_to_4h", "mlp_linear"),
    "down": ("down_proj", "fc2", "fc_out", "ff_out", "dense_4h_to_h", "output_linear", "mlp_resid"),
    "gate_up": ("gate_up_proj", "ff_proj", "input_linear"),
}
ROLES = {name: role for role, names in NAMES.items() for name in names}
GATED_TRIPLE = {"w1": "gate", "w2": "down", "w3": "up"}
CLOSING = ("c_proj", "dense", "out_proj")  # the last matrix of attention and of feed-forward alike


@dataclass(frozen=True)
class Projection:
    """One weight matrix of a transformer block, or one stack of expert matrices.

    Attributes:
        path: Where ``update_modules`` finds it, such as ``"model.layers.0.self_attn.q_proj"``.
        module: The layer itself.
        role: ``"q"``, ``"k"``, ``"v"``, ``"o"``, ``"gate"``, ``"up"``, ``"down"``, the fused
            ``"qkv"`` and ``"gate_up"``, or ``"other"`` where the path does not tell.
        shape: ``(out, in)`` of one matrix, whatever its packing.
        experts: How many matrices are stacked, ``None`` for a plain layer.

    Examples:
        >>> Projection("layers.0.up_proj", nn.Linear(2, 4), "up", (4, 2), None).shape
        (4, 2)
    """

    path: str
    module: nn.Module
    role: str
    shape: tuple[int, int]
    experts: int | None


def projections(model: nn.Module) -> list[Projection]:
    """Return the projection matrices of ``model``, in the order of their definition.

    They are found by type: every ``nn.Linear``, ``nn.QuantizedLinear``, ``RankLayer`` and expert
    stack (a module with ``num_experts``, ``output_dims`` and ``input_dims``, such as mlx-lm's
    ``SwitchLinear``) inside a numbered block. Embeddings and output heads lie outside the blocks.
    Routers are left out: matrices with one output, or as many as there are experts beside them.
    A module that several paths share is reported once.

    Args:
        model: Any MLX module; mlx-lm's models are not imported.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 4), nn.Linear(4, 2))
        >>> [(p.path, p.role, p.shape) for p in projections(model)]
        [('layers.1', 'other', (4, 2)), ('layers.2', 'other', (2, 4))]
    """
    candidates = [
        p for p in _candidates(model) if any(part.isdigit() for part in p.path.split("."))
    ]
    stacks = [(_container(p.path), p.experts) for p in candidates if p.experts is not None]
    return [p for p in candidates if not _is_router(p, stacks)]


def _in_block(path: str) -> bool:
    """Tell whether a part of the path is the number of a block."""
    return any(part.isdigit() for part in path.split("."))


def _candidates(model: nn.Module) -> Iterator[Projection]:
    """Yield every linear layer and expert stack, each module once."""
    seen: set[int] = set()
    for path, module, siblings in _walk("", model, {}):
        sizes = _sizes(module)
        if sizes is not None and id(module) not in seen:
            seen.add(id(module))
            yield Projection(path, module, _role(path, siblings), *sizes)


def _walk(
    path: str, module: nn.Module, siblings: Mapping[str, Any]
) -> Iterator[tuple[str, nn.Module, Mapping[str, Any]]]:
    """Yield all modules with their paths and their parents."""
    yield path, module, siblings
    prefix = f".{path}" if path else ""
    nested = module.children()  # type: ignore[no-untyped-call]
    children: Any = tree_flatten(nested, prefix=prefix, is_leaf=nn.Module.is_module)
    for child_path, child in children:
        yield from _walk(child_path, child, module)


def _sizes(module: nn.Module) -> tuple[tuple[int, int], int | None] | None:
    """Return ``(out, in)`` and the number of experts, or ``None`` for what is no projection."""
    if isinstance(module, RankLayer):
        return module.shape, None
    if isinstance(module, nn.Linear | nn.QuantizedLinear):
        plain = type(module) in (nn.Linear, nn.QuantizedLinear)  # others may return several arrays
        return (linear_shape(module), None) if plain else None
    if is_stack(module):
        return (module.output_dims, module.input_dims), module.num_experts
    return None


def _role(path: str, siblings: Mapping[str, Any]) -> str:
    """Return the role that the end of ``path`` names; a wrapper such as LoRA's adds one part."""
    *_, parent, name = ("", *path.split("."))
    for part in (name, parent):
        if part in ROLES:
            return ROLES[part]
    if name in GATED_TRIPLE and "w3" in siblings:
        return GATED_TRIPLE[name]
    if name in CLOSING:
        return "o" if "att" in parent else "down" if "mlp" in parent else "other"
    return "other"


def _container(path: str) -> str:
    """Return the mixture of experts that holds the stack at ``path``: two levels up."""
    return path.rsplit(".", 2)[0]


def _is_router(projection: Projection, stacks: list[tuple[str, int]]) -> bool:
    """Tell whether this matrix scores experts rather than transforms what they see."""
    if projection.role != "other" or projection.experts is not None:
        return False
    beside = {e for path, e in stacks if projection.path.startswith(f"{path}.")}
    return projection.shape[0] in beside | {1}
