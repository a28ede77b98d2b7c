"""The rows of a batch, dealt out to the processes that train together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Loss = Callable[..., tuple[mx.array, mx.array]]
"""Takes the model and what a batch holds; returns the mean loss of its tokens and their number."""


class Share(NamedTuple):
    """The rows of a batch that one process has.

    Attributes:
        rows: Token ids, shape ``(rows, width)``; the width is that of the whole batch.
        lengths: Where learning begins and ends in each row, shape ``(rows, 2)``.
        weight: What the mean loss of the share is to be multiplied by, so that the mean over the
            processes is the mean loss of the whole batch: float32, a scalar.

    Examples:
        >>> share_of(mx.zeros((2, 9)), mx.array([[0, 8], [0, 2]]), 0, 2).weight.item()
        1.600000023841858
    """

    rows: mx.array
    lengths: mx.array
    weight: mx.array


def share_of(rows: mx.array, lengths: mx.array, rank: int, size: int) -> Share:
    """Return the share of one process in a batch of mlx-lm's.

    mlx-lm's trainer takes the mean over the processes of the mean over their tokens, so a token
    counts for more where the rows of its process are shorter. The weight makes up for it.

    Args:
        rows: Token ids, shape ``(batch, width)``; the batch is divisible by ``size`` in a training.
        lengths: Where learning begins and ends in each row, shape ``(batch, 2)``.
        rank: The number of the process.
        size: How many processes there are, at most as many as rows.

    Examples:
        >>> share_of(mx.array([[1, 2], [3, 4]]), mx.array([[0, 2], [0, 2]]), 1, 2).rows.tolist()
        [[3, 4]]
    """
    learnt = _learnt(np.asarray(lengths), rows.shape[1])
    weight = size * int(learnt[rank::size].sum()) / max(1, int(learnt.sum()))
    return Share(rows[rank::size], lengths[rank::size], mx.array(weight, mx.float32))


def weighted(loss: Loss) -> Loss:
    """Return a loss for batches that end with the weight of a `Share`.

    Examples:
        >>> def mean(model, rows, lengths):
        ...     return rows.mean(), mx.array(rows.size)
        >>> value, tokens = weighted(mean)(None, mx.ones((1, 4)), None, mx.array(1.5))
        >>> value.item(), tokens.item()
        (1.5, 4)
    """

    def of_share(model: Any, *batch: mx.array) -> tuple[mx.array, mx.array]:
        *task, weight = batch
        value, tokens = loss(model, *task)
        return weight * value, tokens

    return of_share


def _learnt(lengths: NDArray[Any], width: int) -> NDArray[Any]:
    """Return how many tokens of each row mlx-lm's loss learns: those from the offset to the end."""
    first, last = np.maximum(lengths[:, 0], 1), np.minimum(lengths[:, 1], width - 1)
    learnt: NDArray[Any] = np.maximum(last - first + 1, 0)
    return learnt
