"""Products of linear layers in NumPy, where MLX computes on the CPU."""

from typing import cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg
from plastic_core.layer import Linear, dense_weight


def numpy_product(x: mx.array, linear: Linear) -> mx.array:
    """Apply an MLX linear layer in NumPy; differentiable with respect to ``x`` alone.

    On Linux mlx's CPU wheel links reference BLAS, about 40 times slower than NumPy's. A packed
    weight is unpacked anew for each product, forwards and backwards.

    Args:
        x: Shape ``(..., in)``, any floating dtype; evaluated.
        linear: Its weight, of shape ``(out, in)``, and bias are taken as constants.

    Returns:
        Shape ``(..., out)``, computed in float32, in the dtype of ``x``.

    Examples:
        >>> linear, x = nn.Linear(4, 3), mx.ones((2, 4))
        >>> mx.allclose(numpy_product(x, linear), linear(x)).item()
        True
    """

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return _times(x, _weight(linear).T)

    @product.vjp
    def backward(x: mx.array, gradient: mx.array, _: mx.array) -> mx.array:
        return _times(gradient, _weight(linear))

    y = cast(mx.array, product(x))
    return y + linear.bias.astype(y.dtype) if "bias" in linear else y


def _weight(linear: Linear) -> NDArray[np.float32]:
    weight: NDArray[np.float32] = linalg.to_numpy(dense_weight(linear).astype(mx.float32))
    return weight


def _times(x: mx.array, A: NDArray[np.float32]) -> mx.array:
    rows = linalg.to_numpy(x.astype(mx.float32)).reshape(-1, len(A))
    return mx.array(rows @ A).reshape(*x.shape[:-1], A.shape[1]).astype(x.dtype)
