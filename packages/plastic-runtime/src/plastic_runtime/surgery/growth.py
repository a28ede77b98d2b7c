"""The directions in which a layer grows, and their worth, from the gradient's factors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from plastic_core import RankLayer
from plastic_core.factors import as_arrays, descent_directions

from plastic_runtime.surgery.gradient_factors import Float32, GradientFactors


class Directions(NamedTuple):
    """Orthonormal directions for new components, orthogonal to those of the layer.

    Attributes:
        U: Shape ``(out, k)``.
        Vh: Shape ``(k, in)``; the loss falls as ``S`` grows from 0 to positive values.
    """

    U: Float32
    Vh: Float32


def steepest_directions(layer: RankLayer, gradient: GradientFactors, k: int) -> Directions:
    """Return the ``k`` directions along which the loss falls fastest: see `descent_directions`.

    Args:
        layer: The layer; not changed.
        gradient: What passes it, from ``gradient_factors``.
        k: The number of components, from 0 to ``max_rank - rank``.
    """
    U, _, Vh = as_arrays(layer.factors())
    return Directions(*descent_directions(U, Vh, k, gradient.gradients, gradient.inputs))


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
