"""A plastic part beside the linear layers of a model, whose own weights stay as they are."""

from collections.abc import Iterable, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from plastic_core import RankLayer, projections
from plastic_core.layer import Linear, linear_shape

from plastic_runtime.measure.intercept import modules_by_path
from plastic_runtime.surgery.gauge import Gauge


def attach(
    model: nn.Module,
    rank: int,
    *,
    keys: Sequence[str] | None = None,
    also: Mapping[str, int] | Iterable[str] = (),
    gauge: Gauge | None = None,
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
        also: Linear layers outside the blocks, such as ``"lm_head"``: full paths, or ranks of
            their own by full path.
        gauge: How the factors are written (``Gauge``): what Adam trains well. Give the same one
            to the manager.
        seed: The seed of the directions.

    Returns:
        The new layers by path.

    Raises:
        ValueError: If ``rank`` is negative, a key or path names no linear layer, there is no
            layer to adapt, or the model cannot be frozen. Nothing has changed then.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> layers = attach(model, rank=2)
        >>> {path: layer.rank for path, layer in layers.items()}
        {'layers.0': 2}
        >>> model.layers[0].S.tolist()
        [0.0, 0.0]
    """
    also = also if isinstance(also, Mapping) else dict.fromkeys(also, rank)
    for r in (rank, *also.values()):
        if r < 0:
            raise ValueError(f"`rank` must not be negative, got {r}.")
    if not hasattr(model, "_no_grad"):  # mlx-lm's recurrent_gemma
        raise ValueError(
            "`model` must be a module that can be frozen, but its class does not call "
            "`nn.Module.__init__`; mlx-lm can lay no adapter over it either."
        )
    chosen = _chosen(model, keys) | _outside(model, also)
    model.freeze()
    pairs = zip(chosen, mx.random.split(mx.random.key(seed), len(chosen)), strict=True)
    layers = {path: _layer(chosen[path], also.get(path, rank), gauge, key) for path, key in pairs}
    model.update_modules(tree_unflatten(list(layers.items())))
    return layers


def adaptable_layers(model: nn.Module) -> dict[str, Linear]:
    """Return the linear layers in the blocks of a model that a plastic part fits beside, by path.

    Those are the ``projections``, dense or quantised, that are no stacks of experts.

    Examples:
        >>> list(adaptable_layers(nn.Sequential(nn.Linear(4, 4), nn.ReLU())))
        ['layers.0']
    """
    return {
        p.path: p.module
        for p in projections(model)
        if p.experts is None and isinstance(p.module, nn.Linear | nn.QuantizedLinear)
    }


def _chosen(model: nn.Module, keys: Sequence[str] | None) -> dict[str, Linear]:
    """Return the plain linear layers of the blocks that ``keys`` name, by path."""
    adaptable = adaptable_layers(model)
    if not adaptable:
        raise ValueError(
            "`model` must have a linear layer in a numbered block (nn.Linear or "
            "nn.QuantizedLinear) that can be adapted, and has none."
        )
    for key in keys or ():
        if not any(_names(key, path) for path in adaptable):
            raise ValueError(f"`keys` must name layers such as '{min(adaptable)}', got '{key}'.")
    return {
        path: module
        for path, module in adaptable.items()
        if keys is None or any(_names(key, path) for key in keys)
    }


def _outside(model: nn.Module, paths: Iterable[str]) -> dict[str, Linear]:
    """Return the linear layers at these paths."""
    modules = modules_by_path(model)
    linears: dict[str, Linear] = {}
    for path in paths:
        module = modules.get(path)
        if not isinstance(module, nn.Linear | nn.QuantizedLinear):
            what = "has nothing there" if module is None else f"has a {type(module).__name__}"
            raise ValueError(f"`also` must name linear layers; at '{path}' the model {what}.")
        linears[path] = module
    return linears


def _names(key: str, path: str) -> bool:
    """Tell whether ``key`` is the path or its last parts."""
    return f".{path}".endswith(f".{key}")


def _layer(base: Linear, rank: int, gauge: Gauge | None, key: mx.array) -> RankLayer:
    out, inner = linear_shape(base)
    empty = mx.zeros((out, 0)), mx.zeros(0), mx.zeros((0, inner))
    layer = RankLayer(*empty, base=base)
    layer.grow(min(rank, layer.max_rank), key=key)
    if gauge is not None:
        layer.set_factors(*gauge.fresh(layer, layer.Vh, layer.rank))
    return layer
