"""Scores of layers: how much the loss depends on each."""

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from plastic_core import Factors, RankLayer

from plastic_runtime.measure.intercept import intercepted, modules_by_path

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
    layers = find_rank_layers(model)
    before = {path: layer.factors() for path, layer in layers.items()}

    def value(factors: dict[str, list[mx.array]]) -> mx.array:
        set_factors(layers, factors)
        return evaluated(loss)

    try:
        gradients = mx.grad(value)({path: list(factors) for path, factors in before.items()})
        mx.eval(gradients)
    finally:
        set_factors(layers, before)
    return {path: _norm(gradients[path]) for path in layers}


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


def set_factors(
    layers: Mapping[str, RankLayer], factors: Mapping[str, Factors | list[mx.array]]
) -> None:
    """Give every layer the factors of its path."""
    for path, layer in layers.items():
        layer.set_factors(*factors[path])


def _norm(gradients: list[mx.array]) -> float:
    squared = sum(float(mx.square(g.astype(mx.float32)).sum()) for g in gradients)
    return float(np.sqrt(squared))
