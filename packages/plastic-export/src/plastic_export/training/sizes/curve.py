"""What is left of a finished run at smaller sizes: its validation loss over the bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from plastic_core import RankLayer

from plastic_export.adapters.adapter import Adapter
from plastic_export.training.adapters import set_pair, stored_bytes
from plastic_export.training.sizes.worth import Worth, leading, ranks_within, smallest_ranks

SHARES = (0.75, 0.5, 0.25, 0.125)
"""Of the bytes of the whole, at which the loss is measured besides: a validation each."""


class RunSize(NamedTuple):
    """What the adapters of a run are at a size.

    Attributes:
        nbytes: Bytes of the larger file of tensors.
        loss: Validation loss, in nats per token.
        rank: The one rank of the file.
        layers: How many layers have a component.

    Examples:
        >>> RunSize(nbytes=150_000, loss=3.25, rank=4, layers=20).loss
        3.25
    """

    nbytes: int
    loss: float
    rank: int
    layers: int


def measure_sizes(
    layers: Mapping[str, RankLayer],
    adapter: Adapter,
    worth: Worth,
    loss: Callable[[], float],
    full: float,
) -> tuple[RunSize, ...]:
    """Measure the validation loss at a handful of sizes, the largest first.

    Args:
        layers: The layers by path, in the state that was written; they come out so.
        adapter: What was written, those components first that are worth most.
        worth: What they are worth.
        loss: Measures the validation loss of the model as it is.
        full: The validation loss of the whole.

    Cost:
        A validation for every one of ``SHARES``.
    """
    whole, least = stored_bytes(adapter), stored_bytes(leading(adapter, smallest_ranks(adapter)))
    points = [_point(adapter, full)]
    for nbytes in (int(share * whole) for share in SHARES):
        if nbytes >= least:
            small = leading(adapter, ranks_within(adapter, worth, nbytes))
            _turn(layers, small)
            points.append(_point(small, loss()))
    _turn(layers, adapter)
    return tuple(points)


def _turn(layers: Mapping[str, RankLayer], adapter: Adapter) -> None:
    for path, pair in adapter.layers.items():
        set_pair(layers[path], pair)


def _point(adapter: Adapter, loss: float) -> RunSize:
    awake = adapter.awake().ranks
    return RunSize(stored_bytes(adapter), loss, max(awake.values()), len(awake))
