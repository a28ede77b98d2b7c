"""The adapter that a run goes on from: its components, in the layers that are trained."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import mlx.core as mx
import numpy as np
from plastic_core import RankLayer
from plastic_core.factors import Arrays, as_arrays, balance
from plastic_core.files import array_bytes
from plastic_core.linalg import as_matrix

from plastic_export.adapters.adapter import Adapter, LoraPair
from plastic_export.training.settings import GAUGE


def begin_with(adapter: Adapter, layers: Mapping[str, RankLayer], seed: int) -> None:
    """Give the layers the components of an adapter, beside as many new ones as there is room for.

    A layer keeps the rank that it has, or gets that of the adapter if that is higher. What it
    computes is the base and the adapter, up to float32; the new components change nothing.

    Args:
        adapter: The adapter.
        layers: Layers whose components change nothing yet, by path.
        seed: The seed of the directions of the new components.

    Raises:
        ValueError: If the adapter has a layer that is not among them, of another shape, or a
            factor that is not finite.
    """
    check_trained(adapter, layers)
    keys = mx.random.split(mx.random.key(seed), len(adapter.layers))
    for key, (path, pair) in zip(keys, adapter.layers.items(), strict=True):
        layer = layers[path]
        if pair.shape != layer.shape:
            raise ValueError(
                f"`start` must be an adapter of this base, but its layer '{path}' is for a "
                f"matrix of shape {pair.shape}, and the base has {layer.shape}."
            )
        _begin(layer, _components(path, pair), key)


def check_trained(adapter: Adapter, paths: Collection[str]) -> None:
    """Refuse an adapter of a layer that is not trained, which the run would lose.

    Raises:
        ValueError: If there is one; names it.
    """
    lost = [path for path in adapter.layers if path not in paths]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ValueError(
            f"`start` must be an adapter of the layers that are trained, but '{lost[0]}'{more} "
            "is not among them; take in with `include` what it adapts, or name its base."
        )


def adapter_digest(adapter: Adapter) -> str:
    """Return the SHA-256 of all that an adapter computes with."""
    digest = hashlib.sha256()
    for path, (A, B, scale) in sorted(adapter.layers.items()):
        digest.update(f"{path} {A.shape} {B.shape} {A.dtype} {B.dtype} {scale!r}".encode())
        for side in (A, B):
            digest.update(array_bytes(side).data)
    return digest.hexdigest()


def _components(path: str, pair: LoraPair) -> Arrays:
    weights = np.full(pair.rank, pair.scale, np.float32)
    return balance(as_matrix(pair.B, f"{path}, B"), weights, as_matrix(pair.A, f"{path}, A"))


def _begin(layer: RankLayer, components: Arrays, key: mx.array) -> None:
    rank = max(layer.rank, len(components[1]))
    layer.set_factors(*layer.in_its_dtypes(*components))
    layer.grow(rank - layer.rank, key=key)
    layer.set_factors(*layer.in_its_dtypes(*GAUGE.scaled(as_arrays(layer.factors()))))
