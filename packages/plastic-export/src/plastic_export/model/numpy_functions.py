"""The functions that a pass through a model spends its time on, in NumPy on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg
from plastic_core.linalg import on_cpu

from plastic_export.model.numpy_attention import use_numpy_attention

F32 = NDArray[np.float32]
_of_mlx = mx.sigmoid


@contextmanager
def use_numpy_functions() -> Iterator[None]:
    """Let attention and ``mx.sigmoid`` compute in NumPy inside the block; both stay differentiable.

    Only where MLX's default device is the CPU. There MLX takes about 20 ns for an exponential,
    NumPy 2, so that the activations of a feed-forward layer cost as much as one of its products.
    Compilation is off meanwhile: what is compiled calls no function of Python. A block within a
    block changes nothing.

    Examples:
        >>> with use_numpy_functions():
        ...     print(f"{mx.sigmoid(mx.array(0.0)).item():.1f}")
        0.5
    """
    if not on_cpu() or mx.sigmoid is _either:
        yield
        return
    with use_numpy_attention():
        mx.disable_compile()
        mx.sigmoid = _either
        try:
            yield
        finally:
            mx.sigmoid = _of_mlx
            if "MLX_DISABLE_COMPILE" not in os.environ:
                mx.enable_compile()


def sigmoid(x: mx.array) -> mx.array:
    """Return ``1 / (1 + exp(-x))`` of a float32 array of any shape, in float32, differentiable."""
    kept: list[F32] = []

    @mx.custom_function
    def values(x: mx.array) -> mx.array:
        with np.errstate(over="ignore"):  # to infinity, whose inverse is right
            kept.append(1 / (1 + np.exp(-linalg.to_numpy(x))))
        return mx.array(kept[0])

    @values.vjp
    def backward(x: mx.array, gradient: mx.array, _: mx.array) -> mx.array:
        s = kept[0]
        return mx.array(linalg.to_numpy(gradient) * (s * (1 - s)))

    return cast(mx.array, values(x))


def _either(x: mx.array, **options: Any) -> mx.array:
    """Take NumPy's for a plain call in float32, and else MLX's own."""
    simple = x.dtype == mx.float32 and not options
    return sigmoid(x) if simple else _of_mlx(x, **options)
