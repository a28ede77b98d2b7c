"""The one place that changes factors, optimizer state and sleeping components together."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from numpy.typing import NDArray
from plastic_core import Factors, RankLayer
from plastic_core.factors import Arrays, as_arrays, right_map
from plastic_core.files import noting
from plastic_core.layer import cast_factors

from plastic_runtime.sleep.sleep_dict import SleepDict
from plastic_runtime.surgery.gauge import Gauge
from plastic_runtime.surgery.moments import AXIS, LayerState, extended, take


def grow(
    layer: RankLayer,
    k: int,
    *,
    path: str,
    optimizer: optim.Optimizer | None = None,
    key: mx.array,
) -> None:
    """Append ``k`` components with ``S = 0``; their optimizer state starts at zero.

    The function does not change, nor do the present components and their state. The next step
    is that of a layer built at this rank: Adam without bias correction at a late step therefore
    moves the new components further than the old ones.

    Args:
        layer: The layer, changed in place.
        k: From 0 to ``layer.max_rank - layer.rank``.
        path: Path of the layer in the model that the optimizer was given.
        optimizer: The one that trains the layer, its state changed in place; None if none does.
        key: From ``mx.random.key``, of the new directions. See ``RankLayer.grow``.

    Raises:
        ValueError: If ``k`` is out of range. Nothing has changed then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.
    """
    state = LayerState(optimizer, path, layer)
    with noting(f"in layer {path!r}"):
        layer.grow(k, key=key)
    state.write(extended(state.moments(), k))
    mx.eval(layer.factors())


def extend(
    layer: RankLayer,
    factors: Factors,
    *,
    path: str,
    optimizer: optim.Optimizer | None = None,
) -> None:
    """Append components; their optimizer state starts at zero, as in :func:`grow`.

    Args:
        layer: The layer, changed in place.
        factors: The components, of the layer's dtypes; with ``U`` or ``S`` zero they change
            nothing.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.

    Raises:
        ValueError: If they do not fit the layer. Nothing has changed then.
        TypeError: If they have other dtypes, or the state of the optimizer cannot follow. Nothing
            has changed then.
    """
    state = LayerState(optimizer, path, layer)
    layer.wake(factors)
    state.write(extended(state.moments(), factors.rank))
    mx.eval(layer.factors())


def rebalance(layer: RankLayer, *, path: str, optimizer: optim.Optimizer | None = None) -> None:
    r"""Turn the factors so that ``S`` is the spectrum of the plastic part.

    U and Vh become orthonormal, S non-negative and non-increasing; the function stays up to
    rounding. With :math:`U' = U L`, :math:`V_h' = R V_h` the gradients become exactly
    :math:`\partial U' = \partial U \, (U^T U')` and
    :math:`\partial V_h' = (V_h' V_h^T) \, \partial V_h`, and first moments follow them. For S the
    pairs of different components are left out,
    :math:`\partial S'_i = \sum_j L_{ji} R_{ij} \, \partial S_j`, and second moments follow by the
    squared matrices as if components were uncorrelated: both heuristic.

    Args:
        layer: The layer, changed in place.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.

    Raises:
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.
    """
    state = LayerState(optimizer, path, layer)
    with noting(f"in layer {path!r}"):
        new, left, right = layer.balanced()
    turned = state.turned(_bases(layer.factors(), new, left, right))
    layer.set_factors(*new)
    state.write(turned)
    mx.eval(layer.factors())


def rewrite(
    layer: RankLayer, factors: Factors, *, path: str, optimizer: optim.Optimizer | None = None
) -> None:
    r"""Write the plastic part by other components; the optimizer's state follows.

    With :math:`U' = U X`, :math:`V_h' = R V_h` the gradients become

    .. math::

        \partial U' = \partial U \, S^{-1} R^T S', \qquad
        \partial V_h' = S' X^T S^{-1} \, \partial V_h, \qquad
        \partial S'_i \approx \sum_j X_{ji} R_{ij} \, \partial S_j ,

    and moments follow them as in :func:`rebalance`. Components with ``S = 0`` have no say.

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
    turned = state.turned(_mixed(layer.factors(), factors))
    layer.set_factors(*factors)
    state.write(turned)
    mx.eval(layer.factors())


def regauge(
    layer: RankLayer, gauge: Gauge, *, path: str, optimizer: optim.Optimizer | None = None
) -> None:
    """Write the plastic part of a layer in a gauge; the optimizer's state follows as in `rewrite`.

    Args:
        layer: The layer, changed in place; its weight stays up to rounding.
        gauge: How.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.

    Raises:
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.
    """
    with noting(f"in layer {path!r}"):
        written = gauge.written(as_arrays(layer.factors()))
    rewrite(layer, _stored(layer, written), path=path, optimizer=optimizer)


def cut(
    layer: RankLayer,
    components: Arrays,
    rank: int,
    *,
    gauge: Gauge,
    path: str,
    optimizer: optim.Optimizer | None,
    sleep: SleepDict,
) -> tuple[int, ...]:
    """Keep the first of these components awake, put the others to sleep, and write what stays.

    Args:
        layer: The layer, changed in place.
        components: Whose sum is its plastic part, the most useful first, as ``loss_components``
            returns them.
        rank: How many stay.
        gauge: How what stays is written.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.
        sleep: Where the others go.

    Returns:
        Their ids, the most useful first.

    Raises:
        ValueError: If ``rank`` is out of range, or is 0 under Muon or Adafactor. Nothing has
            changed then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.
    """
    _check_target(layer, path, optimizer, rank, None)
    rewrite(layer, _stored(layer, gauge.scaled(components)), path=path, optimizer=optimizer)
    gone = range(rank, layer.rank)
    ids = park_components(layer, gone, path=path, optimizer=optimizer, sleep=sleep)
    regauge(layer, gauge, path=path, optimizer=optimizer)
    return ids


def park_components(
    layer: RankLayer,
    indices: Sequence[int],
    *,
    path: str,
    optimizer: optim.Optimizer | None,
    sleep: SleepDict,
) -> tuple[int, ...]:
    """Put components to sleep with their optimizer state, as they are, bits unchanged.

    Args:
        layer: The layer, changed in place; the other components keep their order.
        indices: Distinct indices from 0 to ``layer.rank - 1``.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.
        sleep: Where they go, before they leave the layer.

    Returns:
        Their ids in ``sleep``, in the order of ``indices``.

    Raises:
        ValueError: If an index is out of range or appears twice, or rank 0 meets the optimizer
            Muon or Adafactor. Nothing has changed then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.
    """
    state = LayerState(optimizer, path, layer)
    keep = sorted(set(range(layer.rank)) - set(indices))
    if len(keep) + len(indices) != layer.rank:
        raise ValueError(
            f"`indices` must be distinct and between 0 and rank - 1 = {layer.rank - 1}, "
            f"got {list(indices)}."
        )
    state.check_rank(len(keep))
    moments = state.moments()
    ids = sleep.park(path, _take_factors(layer, indices), take(moments, indices))
    layer.keep(keep)
    state.write(take(moments, keep))
    mx.eval(layer.factors())
    return ids


def park(
    layer: RankLayer,
    *,
    path: str,
    optimizer: optim.Optimizer | None,
    sleep: SleepDict,
    rank: int | None = None,
    tau: float | None = None,
) -> float:
    """Rebalance, then put the smallest components to sleep.

    With ``rank`` the largest components stay as they are. With ``tau`` every singular value is
    soft-thresholded, ``max(S - tau, 0)``, and what falls to zero sleeps with the value it had;
    what the others lose is not kept anywhere.

    Args:
        layer: The layer, changed in place.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.
        sleep: Where the components go.
        rank: Components to keep, from 0 to ``layer.rank``.
        tau: Threshold on the singular values, not negative. Exactly one of ``rank`` and ``tau``.

    Returns:
        Frobenius norm of the change of the layer's weight, in float64.

    Raises:
        ValueError: If ``rank`` or ``tau`` is out of range, or rank 0 meets the optimizer
            Muon or Adafactor. Nothing is parked then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.
    """
    _check_target(layer, path, optimizer, rank, tau)
    rebalance(layer, path=path, optimizer=optimizer)
    keep, S = _kept(layer, rank, tau)
    lost = _numpy(layer.S)
    lost[keep] -= _numpy(S)
    error = RankLayer(layer.U, mx.array(lost), layer.Vh).truncation_error(range(layer.rank))
    gone = sorted(set(range(layer.rank)) - set(keep))
    park_components(layer, gone, path=path, optimizer=optimizer, sleep=sleep)
    layer.set_factors(layer.U, S, layer.Vh)
    return error


def wake(
    layer: RankLayer,
    ids: Sequence[int],
    *,
    path: str,
    optimizer: optim.Optimizer | None,
    sleep: SleepDict,
) -> None:
    """Append sleeping components with the optimizer state they were parked with, bits unchanged.

    State is matched by factor and leaf name and is zero where a component has none, so a run
    should keep to one optimizer.

    Args:
        layer: The layer, changed in place.
        ids: Distinct ids asleep in ``sleep`` for this path, in the order wanted.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.
        sleep: Where they are; they leave it once they are in the layer.

    Raises:
        ValueError: If an id is not asleep at ``path`` or ``layer.max_rank`` would be exceeded.
            Nothing has changed then.
        TypeError: If the state of the optimizer or the dtype of the layer does not fit. Nothing
            has changed then.
    """
    state = LayerState(optimizer, path, layer)
    factors, moments = sleep.read(path, ids)
    moments = extended(state.moments(), factors.rank, moments)
    layer.wake(factors)
    state.write(moments)
    mx.eval(layer.factors())
    sleep.take(path, ids)


def _check_target(
    layer: RankLayer,
    path: str,
    optimizer: optim.Optimizer | None,
    rank: int | None,
    tau: float | None,
) -> None:
    """Refuse what ``park`` cannot do before it rebalances."""
    if (rank is None) == (tau is None):
        raise ValueError("give exactly one of `rank` and `tau`.")
    if tau is not None:
        layer.soft_threshold(tau)
    if rank is not None:
        if not 0 <= rank <= layer.rank:
            raise ValueError(f"`rank` must be between 0 and {layer.rank}, got {rank}.")
        LayerState(optimizer, path, layer).check_rank(rank)


def _kept(layer: RankLayer, rank: int | None, tau: float | None) -> tuple[list[int], mx.array]:
    """The components of a balanced layer that stay awake, and the ``S`` they stay with."""
    if tau is not None:
        return layer.soft_threshold(tau)
    return list(range(layer.rank))[:rank], layer.S[:rank]


def _bases(
    old: Factors, new: Factors, left: mx.array, right: mx.array
) -> dict[str, NDArray[np.float32]]:
    """For each factor the matrix that takes its gradient from the old components to the new."""
    return {
        "U": _numpy(old.U).T @ _numpy(new.U),
        "S": _numpy(left) * _numpy(right).T,
        "Vh": _numpy(old.Vh) @ _numpy(new.Vh).T,
    }


def _mixed(old: Factors, new: Factors) -> dict[str, NDArray[np.float32]]:
    """For each factor the matrix that takes its gradient from the old components to the new."""
    U, S, Vh = (_numpy(part) for part in old)
    X, R = right_map(U, _numpy(new.U)), right_map(Vh.T, _numpy(new.Vh).T).T
    inverse = np.divide(1, S, out=np.zeros_like(S), where=S != 0)[:, None]
    weights = _numpy(new.S)
    return {"U": inverse * R.T * weights, "S": X * R.T, "Vh": inverse * X * weights}


def _stored(layer: RankLayer, factors: Arrays) -> Factors:
    """Arrays as factors in the layer's own types."""
    return cast_factors(Factors(*map(mx.array, factors)), [a.dtype for a in layer.factors()])


def _take_factors(layer: RankLayer, indices: Sequence[int]) -> Factors:
    chosen = mx.array(list(indices), dtype=mx.int32)
    return Factors(
        *(mx.take(getattr(layer, name), chosen, axis=axis) for name, axis in AXIS.items())
    )


def _numpy(array: mx.array) -> NDArray[np.float32]:
    return np.array(array.astype(mx.float32))
