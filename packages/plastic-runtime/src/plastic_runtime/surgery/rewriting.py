r"""The same weight in other components: factors and optimizer state are rewritten together."""

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from numpy.typing import NDArray
from plastic_core import Factors, RankLayer
from plastic_core.factors import as_arrays, right_map
from plastic_core.files import noting

from plastic_runtime.surgery.gauge import Gauge
from plastic_runtime.surgery.moments import LayerState


def rewrite(
    layer: RankLayer, factors: Factors, *, path: str, optimizer: optim.Optimizer | None = None
) -> None:
    r"""Replace the components by others of the same weight; the optimizer's state follows.

    The gradients of the factors are :math:`\partial U = G \, (S V_h)^T`,
    :math:`\partial S_i = u_i^T G v_i` and :math:`\partial V_h = (U S)^T G`, where G is that of the
    dense weight. So with

    .. math::

        (S' V_h')^T = (S V_h)^T \, T_U, \qquad U' S' = (U S) \, T_V, \qquad
        U' = U X, \qquad V_h' = R \, V_h

    they become :math:`\partial U' = \partial U \, T_U`, :math:`\partial V_h' = T_V^T \, \partial
    V_h` and, with the pairs of different components left out,
    :math:`\partial S'_i \approx \sum_j X_{ji} R_{ij} \, \partial S_j`. First moments follow the
    gradients, second moments the squared matrices, as if components were uncorrelated: both
    heuristic. A component with ``S = 0`` has no gradient, and no say.

    Args:
        layer: The layer, changed in place.
        factors: The same weight, or what is to take its place; their sides lie in the span of
            the present ones.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.

    Raises:
        ValueError: If the factors do not fit the layer. Nothing has changed then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.
    """
    state = LayerState(optimizer, path, layer)
    turned = state.turned(_basis_changes(layer.factors(), factors))
    layer.set_factors(*factors)
    state.write(turned)
    mx.eval(layer.factors())


def rebalance(layer: RankLayer, *, path: str, optimizer: optim.Optimizer | None = None) -> None:
    r"""Turn the factors so that ``S`` is the spectrum of the plastic part.

    U and Vh become orthonormal, S non-negative and non-increasing; the function stays up to
    rounding. The optimizer's state follows: moments of the gradient as the gradients do, moments
    of its square as if components were uncorrelated (a heuristic).

    Args:
        layer: The layer, changed in place.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.

    Raises:
        ValueError: If a factor is not finite. Nothing has changed then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.

    Examples:
        >>> layer = RankLayer(3 * mx.eye(2), mx.array([1.0, 2.0]), mx.eye(2))
        >>> rebalance(layer, path="layer")
        >>> layer.S.round().tolist()
        [6.0, 3.0]
    """
    with noting(f"in layer {path!r}"):
        balanced = layer.balanced()
    rewrite(layer, balanced, path=path, optimizer=optimizer)


def regauge(
    layer: RankLayer, gauge: Gauge, *, path: str, optimizer: optim.Optimizer | None = None
) -> None:
    """Write the plastic part of a layer in a gauge; the optimizer's state follows.

    Args:
        layer: The layer, changed in place; its weight stays up to rounding.
        gauge: How the factors are written.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.

    Raises:
        ValueError: If a factor is not finite. Nothing has changed then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.

    Examples:
        >>> layer = RankLayer(mx.eye(4), mx.arange(1.0, 5.0), mx.eye(4))
        >>> regauge(layer, Gauge(scale=2.0, length=1.0), path="layer")
        >>> layer.S.tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    with noting(f"in layer {path!r}"):
        written = gauge.written(as_arrays(layer.factors()))
    rewrite(layer, layer.in_its_dtypes(*written), path=path, optimizer=optimizer)


def _basis_changes(old: Factors, new: Factors) -> dict[str, NDArray[np.float32]]:
    """Return the ``(r, r)`` matrix that takes each factor's gradient from ``old`` to ``new``.

    They follow from the two maps of the sides, as ``S`` only scales these.
    """
    U, S, Vh = _float32(old)
    new_U, new_S, new_Vh = _float32(new)
    X, R = right_map(U, new_U), right_map(Vh.T, new_Vh.T).T
    return {
        "U": _unscaled(S, Vh.T)[:, None] * R.T * new_S,
        "S": X * R.T,
        "Vh": _unscaled(S, U)[:, None] * X * new_S,
    }


def _unscaled(S: NDArray[np.float32], side: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``1 / S``, 0 for a component that is lost beside the others: it has no say."""
    sizes = np.abs(S) * np.linalg.norm(side.astype(np.float64), axis=0)
    heard = sizes > sizes.max(initial=0.0) * max(side.shape) * np.finfo(np.float32).eps
    return np.divide(1, S, out=np.zeros_like(S), where=heard)


def _float32(factors: Factors) -> list[NDArray[np.float32]]:
    return [np.array(part.astype(mx.float32)) for part in factors]
