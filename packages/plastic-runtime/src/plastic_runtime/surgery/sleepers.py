"""The worth of a component asleep to the loss, from the factors of the gradient."""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg

from plastic_runtime.sleep.sleep_dict import Parked
from plastic_runtime.surgery.gradient_factors import GradientFactors


def sleeping_benefit(parked: Parked, gradient: GradientFactors) -> float:
    r"""Return :math:`|u^T G v| = |\langle u v^T, dL/dW \rangle|` of a component asleep.

    By so much the loss changes, to first order, per unit of the component's ``S``. With
    :math:`G = Y^T X` it is :math:`|\sum_t (u^T y_t)(v^T x_t)|` over the tokens t.

    Args:
        parked: The component, u of shape ``(out,)``, v of shape ``(in,)``.
        gradient: What passes its layer, from ``gradient_factors``.

    Examples:
        >>> u, s, v = mx.array([1.0, 0.0]), mx.array(2.0), mx.array([0.0, 1.0])
        >>> X, Y = np.array([[0.0, 3.0]], np.float32), np.array([[-2.0, 5.0]], np.float32)
        >>> sleeping_benefit(Parked(0, "layer", u, s, v, {}), GradientFactors(X, Y))
        6.0
    """
    return abs(float(_slopes(parked, gradient, 1.0).sum()))


def sleeping_gain(parked: Parked, gradient: GradientFactors) -> float:
    r"""Return by how much the loss is predicted to fall as ``S u v^T`` is added.

    With :math:`a_t = S (u^T y_t)(v^T x_t)` over the T tokens it is
    :math:`-\sum a_t - \tfrac{T}{2} \sum a_t^2`: to first order, less what the change costs by the
    empirical Fisher information.

    Args:
        parked: The component.
        gradient: What passes its layer, from ``gradient_factors``.

    Returns:
        In the unit of the loss; negative where the loss would rise.
    """
    a = _slopes(parked, gradient, float(parked.S))
    return float(-a.sum() - len(a) * np.square(a).sum() / 2)


def _slopes(parked: Parked, gradient: GradientFactors, weight: float) -> NDArray[np.float64]:
    """Return ``weight (u^T y_t)(v^T x_t)`` for every token, shape ``(tokens,)``."""
    u, v = (linalg.to_numpy(side.astype(mx.float32)) for side in (parked.U, parked.Vh))
    slopes = weight * (gradient.gradients @ u) * (gradient.inputs @ v)
    return np.asarray(slopes, np.float64)
