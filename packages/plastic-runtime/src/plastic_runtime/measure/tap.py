"""An array whose gradient is seen as the backward pass meets it."""

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import numpy as np


def tapped(
    y: mx.array | list[mx.array], beside: mx.array, record: Callable[[mx.array, mx.array], None]
) -> Any:
    """Return ``y`` itself; the backward pass hands the gradient at ``y`` to ``record``.

    Args:
        y: What a layer computes. Some fused projections return it in parts: the gradient of these
            comes as one array, joined along the last axis.
        beside: What the gradient is recorded with. Its own gradient is zero; MLX follows ``y`` as
            soon as it follows either of the two.
        record: Takes ``beside``, as the backward pass has it, and the gradient.

    Examples:
        >>> seen = []
        >>> def loss(x):
        ...     y = tapped(2 * x, x, lambda x, gradient: seen.append((x.item(), gradient.item())))
        ...     return 3 * y
        >>> mx.grad(loss)(mx.array(5.0)).item()
        6.0
        >>> seen
        [(5.0, 3.0)]
    """

    @mx.custom_function
    def tap(y: mx.array, beside: mx.array) -> mx.array:
        return y

    @tap.vjp
    def backward(primals: Any, gradient: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
        record(primals[1], gradient)
        return gradient, mx.zeros_like(primals[1])

    if isinstance(y, mx.array):
        return tap(y, beside)
    ends = np.cumsum([part.shape[-1] for part in y])[:-1].tolist()
    return cast(mx.array, tap(mx.concatenate(y, axis=-1), beside)).split(ends, axis=-1)
