"""The rank changes: factors, optimizer state and sleeping components together."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from plastic_core import Factors, RankLayer
from plastic_core.factors import Arrays, as_arrays, factor_norm
from plastic_core.files import noting
from plastic_core.layer import Indices, check_threshold, checked_indices

from plastic_runtime.sleep.sleep_dict import SleepDict
from plastic_runtime.surgery.gauge import Gauge
from plastic_runtime.surgery.moments import LayerState, extended, select_moments
from plastic_runtime.surgery.rewriting import rebalance, rewrite


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
    is that of a layer built at this rank: Adam at a late step therefore moves the new components
    further than the old ones.

    Args:
        layer: The layer, changed in place.
        k: The number of components, from 0 to ``layer.max_rank - layer.rank``.
        path: Path of the layer in the model that the optimizer was given.
        optimizer: The one that trains the layer, its state changed in place; None if none does.
        key: A key of ``mx.random.key``, for the new directions. See ``RankLayer.grow``.

    Raises:
        ValueError: If ``k`` is out of range. Nothing has changed then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.

    Examples:
        >>> layer = RankLayer(mx.eye(4, 1), mx.array([2.0]), mx.eye(1, 4))
        >>> grow(layer, 2, path="layer", key=mx.random.key(0))
        >>> layer.S.tolist()
        [2.0, 0.0, 0.0]
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
    """Append components; means of their gradient start at zero.

    Means of its square start at their mean over the present components if an ``S`` is not zero,
    so that Adam moves old and new ones alike. Where all are zero, as in :func:`grow`, so are
    these: the gradients of the sides are then smaller than the present ones'.

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
    begun = state.like_present(factors.rank) if factors.S.any().item() else None
    state.write(extended(state.moments(), factors.rank, begun))
    mx.eval(layer.factors())


def park(
    layer: RankLayer,
    indices: Indices,
    *,
    path: str,
    optimizer: optim.Optimizer | None = None,
    sleep: SleepDict,
) -> tuple[int, ...]:
    """Park components with their optimizer state, as they are, bits unchanged.

    Args:
        layer: The layer, changed in place; the other components keep their order.
        indices: Distinct indices from 0 to ``layer.rank - 1``.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.
        sleep: Where they are stored, before they leave the layer.

    Returns:
        Their ids in ``sleep``, in the order of ``indices``.

    Raises:
        ValueError: If an index is out of range or appears twice, or rank 0 meets the optimizer
            Muon or Adafactor. Nothing has changed then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.

    Examples:
        >>> layer, sleep = RankLayer(mx.eye(2), mx.array([5.0, 1.0]), mx.eye(2)), SleepDict()
        >>> park(layer, [0], path="layer", sleep=sleep)
        (0,)
        >>> layer.S.tolist(), sleep.get(0).S.item()
        ([1.0], 5.0)
    """
    state = LayerState(optimizer, path, layer)
    indices = checked_indices("indices", indices, layer.rank)
    awake = sorted(set(range(layer.rank)).difference(indices))
    state.check_rank(len(awake))
    moments = state.moments()
    ids = sleep.park(path, layer.select(indices), select_moments(moments, indices))
    layer.set_factors(*layer.select(awake))
    state.write(select_moments(moments, awake))
    mx.eval(layer.factors())
    return ids


def shrink_to(
    layer: RankLayer,
    rank: int,
    *,
    path: str,
    optimizer: optim.Optimizer | None = None,
    sleep: SleepDict,
) -> float:
    """Rebalance a layer and park all but its ``rank`` largest components.

    Args:
        layer: The layer, changed in place.
        rank: Components that stay awake, as they are; from 0 to ``layer.rank``.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.
        sleep: Where the others are parked.

    Returns:
        Frobenius norm of the change of the layer's weight, in float64.

    Raises:
        ValueError: If ``rank`` is out of range, or 0 under the optimizer Muon or Adafactor.
            Nothing has changed then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.

    Examples:
        >>> layer, sleep = RankLayer(mx.eye(3), mx.array([3.0, 1.0, 2.0]), mx.eye(3)), SleepDict()
        >>> round(shrink_to(layer, 2, path="layer", sleep=sleep), 3)
        1.0
        >>> layer.S.round().tolist(), sleep.ids("layer")
        ([3.0, 2.0], (0,))
    """
    _check_smaller(layer, rank, path, optimizer)
    rebalance(layer, path=path, optimizer=optimizer)
    parked = range(rank, layer.rank)
    error = layer.truncation_error(parked)
    park(layer, parked, path=path, optimizer=optimizer, sleep=sleep)
    return error


def soft_threshold(
    layer: RankLayer,
    tau: float,
    *,
    path: str,
    optimizer: optim.Optimizer | None = None,
    sleep: SleepDict,
) -> float:
    """Rebalance a layer, lower its spectrum by ``tau`` and park what falls to zero.

    Every singular value becomes ``max(S - tau, 0)``. A component that falls to zero is parked with
    the value it had; what the others lose is not kept anywhere.

    Args:
        layer: The layer, changed in place.
        tau: Threshold on the singular values, not negative.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.
        sleep: Where components are parked.

    Returns:
        Frobenius norm of the change of the layer's weight, in float64.

    Raises:
        ValueError: If ``tau`` is negative (nothing has changed then), or nothing would be left to
            the optimizer Muon or Adafactor (nothing is parked then).
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.

    Examples:
        >>> layer, sleep = RankLayer(mx.eye(3), mx.array([3.0, 1.0, 2.0]), mx.eye(3)), SleepDict()
        >>> round(soft_threshold(layer, 1.5, path="layer", sleep=sleep), 3)
        2.345
        >>> [round(s, 3) for s in layer.S.tolist()], round(sleep.get(0).S.item(), 3)
        ([1.5, 0.5], 1.0)
    """
    check_threshold(tau)
    rebalance(layer, path=path, optimizer=optimizer)
    awake, lowered = layer.soft_threshold(tau)
    U, S, Vh = as_arrays(layer.factors())
    lost = S.copy()
    lost[awake] -= np.array(lowered.astype(mx.float32))
    error = factor_norm(U, lost, Vh)
    parked = sorted(set(range(layer.rank)).difference(awake))
    park(layer, parked, path=path, optimizer=optimizer, sleep=sleep)
    layer.set_factors(layer.U, lowered, layer.Vh)
    return error


def shrink_along(
    layer: RankLayer,
    components: Arrays,
    rank: int,
    *,
    gauge: Gauge,
    path: str,
    optimizer: optim.Optimizer | None = None,
    sleep: SleepDict,
) -> tuple[int, ...]:
    """Keep the first of these components awake, park the others, and write what stays in a gauge.

    Args:
        layer: The layer, changed in place.
        components: Arrays whose sum is its plastic part, the most useful component first, as
            ``loss_components`` returns them.
        rank: How many stay awake.
        gauge: How what stays is written.
        path: Path of the layer in the model.
        optimizer: The one that trains the layer, its state changed in place.
        sleep: Where the others are parked.

    Returns:
        Their ids, the most useful first.

    Raises:
        ValueError: If ``rank`` is out of range, or is 0 under Muon or Adafactor. Nothing has
            changed then.
        TypeError: If the state of the optimizer cannot follow. Nothing has changed then.
    """
    _check_smaller(layer, rank, path, optimizer)
    U, S, Vh = components
    awake = gauge.written((U[:, :rank], S[:rank], Vh[:rank]))
    U, S, Vh = gauge.scaled(components)
    asleep = U[:, rank:], S[rank:], Vh[rank:]
    # One change of basis for both: what is awake in its gauge, the others one by one.
    joined = map(np.concatenate, zip(awake, asleep, strict=True), (1, 0, 0))
    rewrite(layer, layer.in_its_dtypes(*joined), path=path, optimizer=optimizer)
    return park(layer, range(rank, layer.rank), path=path, optimizer=optimizer, sleep=sleep)


def wake(
    layer: RankLayer,
    ids: Sequence[int],
    *,
    path: str,
    optimizer: optim.Optimizer | None = None,
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

    Examples:
        >>> layer, sleep = RankLayer(mx.eye(2), mx.array([5.0, 1.0]), mx.eye(2)), SleepDict()
        >>> ids = park(layer, [0], path="layer", sleep=sleep)
        >>> wake(layer, ids, path="layer", sleep=sleep)
        >>> layer.S.tolist(), len(sleep)
        ([1.0, 5.0], 0)
    """
    state = LayerState(optimizer, path, layer)
    factors, parked_moments = sleep.read(path, ids)
    moments = extended(state.moments(), factors.rank, parked_moments)
    layer.wake(factors)
    state.write(moments)
    mx.eval(layer.factors())
    sleep.take(path, ids)


def _check_smaller(
    layer: RankLayer, rank: int, path: str, optimizer: optim.Optimizer | None
) -> None:
    """Refuse a rank that a layer cannot shrink to."""
    if not 0 <= rank <= layer.rank:
        raise ValueError(f"`rank` must be between 0 and {layer.rank}, got {rank}.")
    LayerState(optimizer, path, layer).check_rank(rank)
