"""Where a layer grows, and what that is worth: from the factors of the gradient alone."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import mlx.nn as nn
import numpy as np
from plastic_core import RankLayer, linalg
from plastic_core.factors import LowRank, as_arrays, leading_triplets, orthonormal_beyond

from plastic_runtime.surgery.gradient_factors import Float32, GradientFactors, gradient_factors
from plastic_runtime.surgery.scores import Loss, find_rank_layers


class Directions(NamedTuple):
    """Orthonormal directions for new components, orthogonal to those of the layer.

    Attributes:
        U: Shape ``(out, k)``.
        Vh: Shape ``(k, in)``; the loss falls as ``S`` grows from 0 to positive values.
    """

    U: Float32
    Vh: Float32


def steepest_directions(layer: RankLayer, gradient: GradientFactors, k: int) -> Directions:
    r"""Return the ``k`` directions along which the loss falls fastest.

    They are the leading singular vectors of :math:`P G Q`, where :math:`G = dL/dW` and P and Q
    project out what the layer has: of all steps of rank k and unit spectral norm,
    :math:`-\sum_{i \le k} p_i q_i^T` lowers :math:`\langle P G Q, D \rangle` most (von Neumann's
    trace inequality). The minus goes to U. With :math:`G = Y^T X` it is :math:`(Y P)^T (X Q)`,
    whose range is found from products with its factors; G is not formed.

    Args:
        layer: The layer; not changed.
        gradient: What passes it, from ``gradient_factors``.
        k: From 0 to ``max_rank - rank``.

    Note:
        ``O(tokens (in + out) k)`` for each of a few rounds.
    """
    U, _, Vh = as_arrays(layer.factors())
    if k == 0:
        return Directions(U[:, :0], Vh[:0])
    rows, columns = _without(gradient.gradients, U), _without(gradient.inputs, Vh.T)
    beyond = LowRank(rows.T, columns)
    norm = float(np.sqrt(beyond.squared_norm()))
    triplets = leading_triplets(beyond, norm, min(k, len(rows)), key=0)
    left, right = _padded(-triplets.U, k), _padded(triplets.Vh.T, k)
    return Directions(orthonormal_beyond(U, left), orthonormal_beyond(Vh.T, right).T)


def descent_score(model: nn.Module, loss: Loss) -> dict[str, float]:
    """Return by how much one new component is predicted to lower the loss, for every layer.

    Args:
        model: A model with ``RankLayer`` modules; it comes out as it went in.
        loss: Evaluates the model on a probe batch, returns a scalar; not compiled.

    Returns:
        ``predicted_decrease`` by path; 0.0 for a layer at full rank, or that the loss does not
        reach; NaN where what passes it is not finite.

    Note:
        One pass forwards and backwards.
    """
    layers = find_rank_layers(model)
    scores = dict.fromkeys(layers, 0.0)
    for path, gradient in gradient_factors(model, loss).items():
        decrease = predicted_decrease(layers[path], gradient, 1) if gradient.finite else math.nan
        scores[path] = decrease
    return scores


def predicted_decrease(layer: RankLayer, gradient: GradientFactors, k: int) -> float:
    r"""Return by how much ``k`` new components are predicted to lower the loss.

    Directions are found on every other token and judged on the rest, for what is steep on the
    tokens it was chosen on is mostly noise. There a component of weight s changes the loss by
    about :math:`s \gamma + \tfrac12 s^2 \eta` with, over T tokens,
    :math:`\gamma = \sum_t (u^T g_t)(v^T x_t)` and
    :math:`\eta = T \sum_t (u^T g_t)^2 (v^T x_t)^2` (the empirical Fisher information); its best
    weight lowers it by :math:`\gamma^2 / 2 \eta`, counted where :math:`\gamma < 0`, as for the
    direction as it was found. Heuristic in the curvature.

    Returns:
        Not negative; in the unit of the loss.
    """
    k = min(k, layer.max_rank - layer.rank)
    even, odd = (GradientFactors(*(part[i::2] for part in gradient)) for i in (0, 1))
    if k == 0 or not len(odd.inputs):
        return 0.0
    U, Vh = steepest_directions(layer, even, k)
    # Half of the tokens have half of the gradient.
    along = 2.0 * ((odd.gradients @ U) * (odd.inputs @ Vh.T)).astype(np.float64)
    slopes, curvatures = along.sum(axis=0), len(along) * np.square(along).sum(axis=0)
    gains = np.square(slopes) / (2 * np.maximum(curvatures, np.finfo(np.float64).tiny))
    return float(gains[slopes < 0].sum())


def _without(rows: Float32, directions: Float32) -> Float32:
    """Remove from the rows the span of the columns of ``directions``: twice, for precision."""
    Q = linalg.qr(directions)[0]
    once = rows - (rows @ Q) @ Q.T
    return cast(Float32, once - (once @ Q) @ Q.T)


def _padded(columns: Float32, k: int) -> Float32:
    """Columns up to ``k``, of zeros where fewer tokens than that were seen."""
    padded = np.zeros((len(columns), k), np.float32)
    padded[:, : columns.shape[1]] = columns
    return padded
