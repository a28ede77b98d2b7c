"""Products of linear layers in NumPy, where MLX computes on the CPU."""

from functools import cached_property
from typing import cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg
from plastic_core.layer import Linear, dense_weight


class NumpyProduct:
    """The product of a linear layer in NumPy, with its weight in float32, unpacked once.

    Args:
        linear: Its weight, of shape ``(out, in)``, and bias are taken as constants.
    """

    def __init__(self, linear: Linear) -> None:
        self._linear = linear

    def __call__(self, x: mx.array, *, forwards: bool = True) -> mx.array:
        """Apply the layer; see `numpy_product`.

        Args:
            x: Shape ``(..., in)``.
            forwards: Whether the values are computed, and not just their gradient: NaN else.
        """

        @mx.custom_function
        def product(x: mx.array) -> mx.array:
            if forwards:
                return _times(x, self._weight.T)
            return mx.full((*x.shape[:-1], len(self._weight)), mx.nan, x.dtype)

        @product.vjp
        def backward(x: mx.array, gradient: mx.array, _: mx.array) -> mx.array:
            return _times(gradient, self._weight)

        y = cast(mx.array, product(x))
        return y + self._linear.bias.astype(y.dtype) if "bias" in self._linear else y

    @cached_property
    def _weight(self) -> NDArray[np.float32]:
        weight: NDArray[np.float32] = linalg.to_numpy(dense_weight(self._linear).astype(mx.float32))
        return weight


def numpy_product(x: mx.array, linear: Linear) -> mx.array:
    """Apply an MLX linear layer in NumPy; differentiable with respect to ``x`` alone.

    On Linux mlx's CPU wheel links reference BLAS, about 40 times slower than NumPy's. The bits are
    the same for any number of threads.

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
    return NumpyProduct(linear)(x)


def _times(x: mx.array, A: NDArray[np.float32]) -> mx.array:
    rows = linalg.to_numpy(x.astype(mx.float32)).reshape(-1, len(A))
    return mx.array(linalg.product(rows, A)).reshape(*x.shape[:-1], A.shape[1]).astype(x.dtype)
