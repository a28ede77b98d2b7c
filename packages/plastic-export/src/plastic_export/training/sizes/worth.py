"""The components of a finished run in the order of their worth, and the best ones of them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from plastic_core import RankLayer
from plastic_runtime import SleepDict
from plastic_runtime.surgery import Holding, redistribute, value_components

from plastic_export.adapters.adapter import Adapter
from plastic_export.adapters.sizes import fullest
from plastic_export.training.adapters import count_run_bytes, stored_bytes

Worth = Mapping[str, tuple[float, ...]]
"""What the loss would rise by without each component of a layer, nats per token, by path; the
greatest first."""
Ranks = Mapping[str, int]
"""How many components of each layer stay, by path."""


def order_by_worth(
    model: nn.Module, layers: Mapping[str, RankLayer], loss: Callable[[], mx.array]
) -> Worth:
    """Write the plastic parts anew, in place: as many components, those worth most first.

    What a layer computes stays, up to rounding.

    Args:
        model: The model.
        layers: Its layers by path.
        loss: Evaluates the model on a probe batch; not compiled.

    Returns:
        The price of every component (`value_components`).

    Raises:
        ValueError: If what passes a layer is not finite, or the gradient is zero in every layer.
            Nothing has changed then.

    Cost:
        One pass forwards and backwards.
    """
    model.train()  # some layers can be differentiated in this mode alone
    found = {
        path: inventory.components
        for path, inventory in value_components(model, SleepDict(), loss).items()
    }
    for path, layer in layers.items():
        layer.set_factors(*layer.in_its_dtypes(*found[path]))
    return {path: tuple((found[path][1].astype(np.float64) ** 2 / 2).tolist()) for path in layers}


def leading(adapter: Adapter, ranks: Ranks) -> Adapter:
    """Return an adapter with the first components of every layer alone, their bits unchanged."""
    layers = {
        path: pair._replace(A=pair.A[: ranks[path]], B=pair.B[:, : ranks[path]])
        for path, pair in adapter.layers.items()
    }
    return replace(adapter, layers=layers)


def lost(worth: Worth, ranks: Ranks) -> float:
    """Return what the loss is predicted to rise by at these ranks, nats per token."""
    return sum(sum(each[ranks.get(path, 0) :]) for path, each in worth.items())


def smallest_ranks(adapter: Adapter) -> dict[str, int]:
    """Return the ranks of the smallest file that holds anything: one component.

    Raises:
        ValueError: If the adapter has no component.
    """
    awake = adapter.awake().layers
    single = [dict.fromkeys(adapter.layers, 0) | {path: 1} for path in awake]
    return min(single, key=lambda ranks: stored_bytes(leading(adapter, ranks)))


def ranks_within(adapter: Adapter, worth: Worth, max_bytes: int) -> dict[str, int]:
    """Return the ranks at which the least is predicted to be lost, in so many bytes.

    Args:
        adapter: The components, those of a layer in the order of ``worth``.
        worth: What each of them is worth.
        max_bytes: Bytes of the larger file of tensors, at least those of `smallest_ranks`.
    """
    shapes = {path: pair.shape for path, pair in adapter.layers.items()}
    count = count_run_bytes(shapes, max_bytes)
    holdings = [
        Holding(path, _values(worth[path][: pair.rank]), count.components[path], floor=0)
        for path, pair in adapter.layers.items()
    ]

    def chosen(nbytes: int) -> dict[str, int]:
        ranks = redistribute(holdings, max(nbytes, count.fixed), count)
        return ranks if any(ranks.values()) else smallest_ranks(adapter)

    return fullest(chosen, count, lambda ranks: stored_bytes(leading(adapter, ranks)), max_bytes)


def _values(worth: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(np.sqrt(2 * np.array(worth, np.float64)).tolist())
