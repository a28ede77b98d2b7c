"""The loss of a probe batch, and the layers whose part in it is measured."""

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from plastic_core import Factors, RankLayer

from plastic_runtime.measure.intercept import modules_by_path

Loss = Callable[[], mx.array]


def evaluated(loss: Loss) -> mx.array:
    """Return what a probe evaluates to.

    Raises:
        TypeError: If it is not a scalar array, of which alone there is a gradient.
    """
    value: Any = loss()
    if not isinstance(value, mx.array):
        got = type(value).__name__
        raise TypeError(f"`loss` must return a scalar mx.array, got {got}: leave out .item().")
    if value.ndim:
        raise TypeError(f"`loss` must return a scalar, got shape {value.shape}: take its mean.")
    return value


def find_rank_layers(model: nn.Module) -> dict[str, RankLayer]:
    """Return every ``RankLayer`` of a model by path, paths in alphabetical order.

    A layer reached by two paths goes by the first.

    Examples:
        >>> model = nn.Sequential(RankLayer(mx.eye(2), mx.ones(2), mx.eye(2)), nn.ReLU())
        >>> list(find_rank_layers(model))
        ['layers.0']
    """
    by_identity: dict[int, tuple[str, RankLayer]] = {}
    for path, module in modules_by_path(model).items():
        if isinstance(module, RankLayer):
            by_identity.setdefault(id(module), (path, module))
    return dict(by_identity.values())


def set_factors(
    layers: Mapping[str, RankLayer], factors: Mapping[str, Factors | list[mx.array]]
) -> None:
    """Give every layer the factors of its path."""
    for path, layer in layers.items():
        layer.set_factors(*factors[path])
