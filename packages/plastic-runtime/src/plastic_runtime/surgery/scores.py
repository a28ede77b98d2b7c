"""Scores of layers: how much the loss depends on each."""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from plastic_core import RankLayer
from plastic_core.factors import as_arrays

from plastic_runtime.measure.intercept import intercepted
from plastic_runtime.surgery.gradient_factors import GradientFactors, gradient_factors
from plastic_runtime.surgery.probe_loss import Loss, evaluated, find_rank_layers


def gradient_score(model: nn.Module, loss: Loss) -> dict[str, float]:
    r"""Return :math:`\sqrt{\|dL/dU\|_F^2 + \|dL/dS\|^2 + \|dL/dV_h\|_F^2}` of every layer.

    Args:
        model: A model with ``RankLayer`` modules; it comes out as it went in.
        loss: Evaluates the model on a probe batch, returns a scalar; not compiled.

    Returns:
        By path, not negative; 0.0 for a layer that the loss does not reach.

    Examples:
        >>> model = nn.Sequential(RankLayer(mx.eye(1), mx.array([2.0]), mx.eye(1)))
        >>> scores = gradient_score(model, lambda: model(mx.array([3.0])).sum())
        >>> {path: round(score, 3) for path, score in scores.items()}  # of 6, 3 and 6
        {'layers.0': 9.0}
    """
    gradients = gradient_factors(model, loss)
    return {
        path: factor_slope(layer, gradients[path]) if path in gradients else 0.0
        for path, layer in find_rank_layers(model).items()
    }


def factor_slope(layer: RankLayer, gradient: GradientFactors) -> float:
    r"""Return the norm of the gradient of a layer's three factors, see `gradient_score`.

    With :math:`G = Y^T X` they are :math:`Y^T (X V_h^T) S`, :math:`S (U^T Y^T) X` and, for S,
    :math:`\sum_t (u_i^T y_t)(v_i^T x_t)`: ``O(tokens (in + out) r)``.
    """
    U, S, Vh = as_arrays(layer.factors())
    right, left = gradient.inputs @ Vh.T, gradient.gradients @ U
    of_factors = (
        (gradient.gradients.T @ right) * S,
        np.sum(left * right, axis=0),
        (left * S).T @ gradient.inputs,
    )
    return math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in of_factors))


def relevance_score(model: nn.Module, loss: Loss) -> dict[str, float]:
    r"""Return each layer's share of the relevance that reaches the layers' outputs.

    The relevance of output unit j is :math:`|\sum_t a_{tj} \, \partial L / \partial a_{tj}|`,
    summed over tokens t: gradient times activation, as layer-wise relevance propagation comes
    down to in a piecewise linear network, and the first-order change of the loss if the unit
    were switched off. Which layer then deserves rank is a heuristic.

    Args:
        model: A model with ``RankLayer`` modules; it comes out as it went in.
        loss: Evaluates the model on a probe batch, returns a scalar; not compiled.

    Returns:
        By path, not negative, of sum 1 over the model; all 0.0 where no relevance arrives.

    References:
        Ancona et al., *Towards better understanding of gradient-based attribution methods*, 2018,
        arXiv 1711.06104, proposition 1 (LRP as a product of input and gradient); Molchanov et al.,
        *Pruning convolutional neural networks*, 2017, arXiv 1611.06440, section 2.2.

    Examples:
        >>> left, right = (RankLayer(mx.eye(2), S * mx.ones(2), mx.eye(2)) for S in (1.0, 3.0))
        >>> model = nn.Sequential(left, right)
        >>> relevance_score(model, lambda: (left(mx.ones(2)) + right(mx.ones(2))).sum())
        {'layers.0': 0.25, 'layers.1': 0.75}
    """
    layers = find_rank_layers(model)

    def value(gates: dict[str, mx.array]) -> mx.array:
        def around(path: str, call: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
            y = call(x)
            return y * gates[path].astype(y.dtype)

        with intercepted(layers, around):
            return evaluated(loss)

    gates = {path: mx.ones(layer.shape[0]) for path, layer in layers.items()}
    units = mx.grad(value)(gates)
    relevance = {path: float(mx.abs(units[path]).sum()) for path in layers}
    total = sum(relevance.values())
    return {path: r / total if total > 0 else 0.0 for path, r in relevance.items()}
