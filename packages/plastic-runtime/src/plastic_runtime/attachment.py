"""A plastic part beside the linear layers of a model, whose own weights stay as they are."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from plastic_core import Projection, RankLayer, projections


def attach(
    model: nn.Module,
    rank: int,
    *,
    keys: Sequence[str] | None = None,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
) -> dict[str, RankLayer]:
    """Freeze a model and give its projections a trainable plastic part that changes nothing yet.

    Every linear layer of a transformer block, dense or quantised, becomes the frozen backbone of
    a ``RankLayer``. The components enter with ``S = 0`` on random orthonormal directions, so the
    function of the model is exactly what it was. Embeddings, heads, routers and stacks of
    experts are left alone.

    Args:
        model: Any module with numbered blocks, such as every model of mlx-lm; changed in place.
        rank: Components per layer; a layer that has no room for as many gets its full rank.
        keys: Which layers: full paths, or their last parts such as ``"self_attn.q_proj"``; by
            default all.
        dtype: Of the factors; their optimizer state has the same.
        seed: Of the directions.

    Returns:
        The new layers by path.

    Raises:
        ValueError: If ``rank`` is negative, a key names no layer, or there is no layer to adapt.
            Nothing has changed then.
    """
    if rank < 0:
        raise ValueError(f"`rank` must not be negative, got {rank}.")
    chosen = _chosen(model, keys)
    model.freeze()
    pairs = zip(chosen, mx.random.split(mx.random.key(seed), len(chosen)), strict=True)
    layers = {found.path: _layer(found, rank, dtype, key) for found, key in pairs}
    model.update_modules(tree_unflatten(list(layers.items())))
    return layers


def _chosen(model: nn.Module, keys: Sequence[str] | None) -> list[Projection]:
    """The plain linear layers of the blocks that ``keys`` name."""
    stock = (nn.Linear, nn.QuantizedLinear)
    found = [p for p in projections(model) if p.experts is None and isinstance(p.module, stock)]
    if not found:
        raise ValueError(
            "`model` must have a linear layer in a numbered block (nn.Linear or "
            "nn.QuantizedLinear) that can be adapted, and has none."
        )
    if keys is None:
        return found
    for key in keys:
        if not any(_names(key, p.path) for p in found):
            raise ValueError(f"`keys` must name layers such as '{found[0].path}', got '{key}'.")
    return [p for p in found if any(_names(key, p.path) for key in keys)]


def _names(key: str, path: str) -> bool:
    """Whether ``key`` is the path or its last parts."""
    return f".{path}".endswith(f".{key}")


def _layer(found: Projection, rank: int, dtype: mx.Dtype, key: mx.array) -> RankLayer:
    (out, inner), base = found.shape, found.module
    assert isinstance(base, nn.Linear | nn.QuantizedLinear)
    empty = mx.zeros((out, 0), dtype), mx.zeros(0, dtype), mx.zeros((0, inner), dtype)
    layer = RankLayer(*empty, base=base)
    layer.grow(min(rank, layer.max_rank), key=key)
    return layer
