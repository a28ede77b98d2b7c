"""The gradient of every dense weight as factors, from one pass: nothing dense is stored."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg

from plastic_runtime.measure.intercept import intercepted, tapped
from plastic_runtime.surgery.probe_loss import Loss, evaluated, find_rank_layers, set_factors

Float32 = NDArray[np.float32]


class GradientFactors(NamedTuple):
    r"""The inputs of a layer and the gradients at its outputs: :math:`dL/dW = Y^T X`.

    Attributes:
        inputs: X, shape ``(tokens, in)``, float32.
        gradients: Y, ``dL/dy`` at the layer's output, shape ``(tokens, out)``, float32.

    Examples:
        >>> X, Y = np.array([[1.0, 2.0]], np.float32), np.array([[3.0]], np.float32)
        >>> GradientFactors(X, Y).dense().tolist()
        [[3.0, 6.0]]
    """

    inputs: Float32
    gradients: Float32

    def dense(self) -> Float32:
        """Return ``dL/dW``, shape ``(out, in)``."""
        return self.gradients.T @ self.inputs

    @property
    def finite(self) -> bool:
        """Tell whether no entry is NaN or infinite."""
        return all(bool(np.isfinite(part).all()) for part in self)


def gradient_factors(model: nn.Module, loss: Loss) -> dict[str, GradientFactors]:
    """Return the factors of ``dL/dW`` for every ``RankLayer`` of a model.

    Args:
        model: A model with ``RankLayer`` modules; it comes out as it went in. Gradient
            checkpointing, as mlx-lm switches it on, may be in force.
        loss: Evaluates the model on a probe batch, returns a scalar; not compiled.

    Returns:
        By path. A layer that the loss does not reach, or that no gradient passes, is left out;
        one that runs several times has the tokens of all runs.

    Raises:
        TypeError: If ``loss`` returns anything but a scalar array.

    Note:
        One forward and one backward pass, and ``4 tokens (in + out)`` bytes per layer.

    Examples:
        >>> model = nn.Sequential(RankLayer(mx.eye(2), mx.ones(2), mx.eye(2)))
        >>> x = mx.array([[1.0, 2.0]])
        >>> gradient_factors(model, lambda: model(x).sum())["layers.0"].dense().tolist()
        [[1.0, 2.0], [1.0, 2.0]]
    """
    layers = find_rank_layers(model)
    seen: dict[str, list[tuple[mx.array, mx.array]]] = {path: [] for path in layers}

    def around(path: str, call: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        y: mx.array = tapped(call(x), x, lambda x, g: seen[path].append((_rows(x), _rows(g))))
        return y

    before = {path: layer.factors() for path, layer in layers.items()}

    def value(factors: Mapping[str, list[mx.array]]) -> mx.array:
        set_factors(layers, factors)
        return evaluated(loss)

    try:
        # Around the backward pass too, as a checkpointed block runs again in it.
        with intercepted(layers, around):
            # These gradients are not wanted: through them MLX follows every layer.
            mx.grad(value)({path: list(factors) for path, factors in before.items()})
            mx.eval(seen)  # at once: one at a time takes five times as long
    finally:
        set_factors(layers, before)
    return {path: _joined(parts) for path, parts in seen.items() if parts}


def _rows(x: mx.array) -> mx.array:
    return x.astype(mx.float32).reshape(-1, x.shape[-1])


def _joined(parts: list[tuple[mx.array, mx.array]]) -> GradientFactors:
    inputs, gradients = ([linalg.to_numpy(x) for x in side] for side in zip(*parts, strict=True))
    if len(parts) == 1:
        return GradientFactors(inputs[0], gradients[0])
    return GradientFactors(np.concatenate(inputs), np.concatenate(gradients))
