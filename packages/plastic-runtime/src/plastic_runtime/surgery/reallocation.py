"""The worth of every component, awake or asleep, on which a budget in bytes is spent."""

from __future__ import annotations

from typing import NamedTuple

import mlx.nn as nn
import numpy as np
from plastic_core import RankLayer
from plastic_core.factors import Arrays

from plastic_runtime.sleep.sleep_dict import SleepDict
from plastic_runtime.surgery.gradient_factors import GradientFactors, gradient_factors
from plastic_runtime.surgery.loss_components import loss_components
from plastic_runtime.surgery.probe_loss import Loss, find_rank_layers
from plastic_runtime.surgery.schedule import Holding
from plastic_runtime.surgery.sleepers import sleeping_gain

RELUCTANCE = 2.0  # times the worth of what is awake that a sleeper must show to take its place


class Inventory(NamedTuple):
    """The components of one layer, awake and asleep, and their worth to the loss.

    Attributes:
        components: Its plastic part as ``loss_components`` returns it.
        asleep: Ids of its sleepers that would lower the loss, the most useful first.
        gains: The predicted fall of the loss through each of them, discounted.
        bytes_per_rank: Bytes of one component.
        most: Components it can hold.
    """

    components: Arrays
    asleep: tuple[int, ...]
    gains: tuple[float, ...]
    bytes_per_rank: int
    most: int

    def ordered(self) -> list[tuple[float, int | None]]:
        """Worth of every component, the greatest first, with the id of one that sleeps."""
        awake = [(float(s) ** 2 / 2, None) for s in self.components[1]]
        asleep = zip(self.gains, self.asleep, strict=True)
        every = sorted([*awake, *asleep], key=lambda item: (-item[0], item[1] or -1))
        return every[: self.most]

    def holding(self, path: str, floor: int) -> Holding:
        """Return what the shared budget is told."""
        values = tuple(float(np.sqrt(2 * worth)) for worth, _ in self.ordered())
        return Holding(path, values, self.bytes_per_rank, floor)

    def chosen(self, rank: int) -> tuple[int, tuple[int, ...]]:
        """Return how many stay awake, and which wake, at this rank."""
        best = [id for _, id in self.ordered()[:rank]]
        return best.count(None), tuple(id for id in best if id is not None)


def value_components(model: nn.Module, sleep: SleepDict, loss: Loss) -> dict[str, Inventory]:
    """Measure on one probe batch what every component, awake or asleep, is worth.

    An awake one is worth what leaving it out is predicted to cost; one asleep what adding it with
    the weight it has is predicted to gain, to first order less its own cost, divided by
    ``RELUCTANCE`` so that two of like worth do not take turns.

    Args:
        model: A model with ``RankLayer`` modules; not changed.
        sleep: The components asleep.
        loss: Evaluates the model on a probe batch, returns a scalar; not compiled.

    Raises:
        TypeError: If ``loss`` returns anything but a scalar array.
        ValueError: If what passes a layer is not finite, or nothing passes it; names the layer. If
            the gradient is zero in every layer.

    Note:
        One pass forwards and backwards, and products of the order of the ranks. No gradient of a
        dense weight is formed.

    Examples:
        >>> model = nn.Sequential(RankLayer(mx.eye(2), mx.array([1.0, 3.0]), mx.eye(2)))
        >>> x = mx.random.normal((64, 2), key=mx.random.key(0))
        >>> found = value_components(model, SleepDict(), lambda: mx.square(model(x)).mean())
        >>> U, S, Vh = found["layers.0"].components
        >>> bool(S[0] > S[1]), bool(np.allclose((U * S) @ Vh, np.diag([1.0, 3.0]), atol=1e-5))
        (True, True)
    """
    gradients = gradient_factors(model, loss)
    layers = find_rank_layers(model)
    passing = {path: finite_gradient(path, gradients) for path in layers}
    if not any(one.gradients.any() for one in passing.values()):
        raise ValueError("the probe's gradient is zero in every layer, so nothing has a price")
    return {path: _inventory(layers[path], sleep, path, passing[path]) for path in layers}


def finite_gradient(path: str, gradients: dict[str, GradientFactors]) -> GradientFactors:
    """Return the gradient of a layer.

    Raises:
        ValueError: If nothing did, or not all of it is finite.
    """
    if path not in gradients:
        raise ValueError(f"no gradient of the probe's loss reaches the layer '{path}'")
    if not gradients[path].finite:
        raise ValueError(f"the probe's loss or gradient is not finite in the layer '{path}'")
    return gradients[path]


def _inventory(
    layer: RankLayer, sleep: SleepDict, path: str, gradient: GradientFactors
) -> Inventory:
    gains = {i: sleeping_gain(sleep.get(i), gradient) / RELUCTANCE for i in sleep.ids(path)}
    useful = sorted((i for i in gains if gains[i] > 0), key=lambda i: (-gains[i], i))
    return Inventory(
        components=loss_components(layer, gradient),
        asleep=tuple(useful),
        gains=tuple(gains[i] for i in useful),
        bytes_per_rank=layer.bytes_per_rank,
        most=layer.max_rank,
    )
