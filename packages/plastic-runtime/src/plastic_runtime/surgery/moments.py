"""The optimizer's state for each component of a layer: read, selected, extended, turned."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from numpy.typing import NDArray
from plastic_core import RankLayer

from plastic_runtime.sleep.sleep_dict import Moments

Matrix = NDArray[np.float32]
Lift = Callable[[Matrix], Matrix]

AXIS = {"U": 1, "S": 0, "Vh": 0}

# Adafactor stores the row and column means of squared gradients. One of the two runs along the
# components, the other one is a mean over them.
ALONG = {"U": "exp_avg_sq_col", "Vh": "exp_avg_sq_row"}
ACROSS = {"U": "exp_avg_sq_row", "Vh": "exp_avg_sq_col"}

# Their steps take a ratio or a mean over the components: by zero a division error in Muon, NaN in
# Adafactor, whose sums along an empty axis moreover need not end on MLX's CPU.
NEVER_EMPTY = (optim.Muon, optim.Adafactor)


def _same(T: Matrix) -> Matrix:
    return T


# How each leaf follows a change of basis: as the gradient, its square or its modulus.
LIFTS: dict[type[optim.Optimizer], dict[str, Lift]] = {
    optim.SGD: {"v": _same},
    optim.Muon: {"v": _same},
    optim.Lion: {"m": _same},
    optim.Adam: {"m": _same, "v": np.square},
    optim.Adamax: {"m": _same, "v": np.abs},
    optim.Adagrad: {"v": np.square},
    optim.RMSprop: {"v": np.square},
    optim.AdaDelta: {"v": np.square, "u": np.square},
    optim.Adafactor: {
        "exp_avg": _same,
        "exp_avg_sq": np.square,
        "exp_avg_sq_row": np.square,
        "exp_avg_sq_col": np.square,
    },
}


def may_be_empty(optimizer: optim.Optimizer | None) -> bool:
    """Tell whether an optimizer can train factors without a component."""
    singles = [] if optimizer is None else single_optimizers(optimizer)
    return not any(isinstance(single, NEVER_EMPTY) for single in singles)


class Slot(NamedTuple):
    """The state of one factor: its name, the optimizer that owns it, the live dict of leaves."""

    name: str
    owner: optim.Optimizer
    leaves: dict[str, mx.array]


class LayerState:
    """The optimizer state of the factors of one layer.

    Reading is pure; ``write`` changes the optimizer's own dicts in place, so that a step compiled
    on ``optimizer.state`` goes on seeing them. An optimizer that has no state for the layer yet,
    or None, gives an empty ``LayerState``.

    Args:
        optimizer: Any optimizer of ``mlx.optimizers``, also a ``MultiOptimizer``.
        path: Path of the layer in the model; empty where the layer is the model.
        layer: The layer, before the change of rank.

    Raises:
        TypeError: If a leaf has neither the shape of its factor nor one known of Adafactor;
            names the optimizer and the leaf.
    """

    def __init__(self, optimizer: optim.Optimizer | None, path: str, layer: RankLayer) -> None:
        singles = [] if optimizer is None else single_optimizers(optimizer)
        self.slots = list(_slots(singles, path))
        self.owners = [slot.owner for slot in self.slots] or singles
        for slot in self.slots:
            _check_shapes(slot, path, getattr(layer, slot.name).shape)

    def check_rank(self, rank: int) -> None:
        """Refuse a rank that the optimizer cannot step on.

        Raises:
            ValueError: For rank 0 under an optimizer of ``NEVER_EMPTY``.
        """
        for owner in self.owners:
            if rank == 0 and isinstance(owner, NEVER_EMPTY):
                raise ValueError(
                    f"`rank` must be at least 1 under the optimizer {type(owner).__name__}, which "
                    "divides by it, got 0. Keep one component or train the factors with another "
                    "optimizer (mlx.optimizers.MultiOptimizer)."
                )

    def moments(self) -> Moments:
        """Return the leaves that have one entry per component, by factor."""
        return {
            name: {leaf: array for leaf, array in leaves.items() if leaf != ACROSS.get(name)}
            for name, _, leaves in self.slots
        }

    def turned(self, bases: Mapping[str, Matrix]) -> Moments:
        r"""Return ``moments`` after each factor's components were mixed.

        A leaf linear in the gradient follows it, :math:`m' = m T`; one quadratic in it follows
        as if the gradients of the components were uncorrelated, :math:`v' = v (T \odot T)`; an
        infinity norm (Adamax) is bounded by :math:`v |T|`. The last two are heuristics.

        Args:
            bases: The ``(r, r)`` matrix T of each factor, new components in its columns.

        Raises:
            TypeError: If the optimizer is of a class, or a leaf of a name, not known here.
        """
        return {
            slot.name: {
                leaf: _turn(slot.name, array, _lift(slot.owner, leaf)(bases[slot.name]))
                for leaf, array in leaves.items()
            }
            for slot, leaves in zip(self.slots, self.moments().values(), strict=True)
        }

    def like_present(self, k: int) -> Moments:
        """Return leaves for ``k`` components whose gradients are as large as the present ones'.

        Means of the gradient are zero, means of its square or modulus their mean over the present
        components: from zero, a late step of Adam on a new component would be several times as
        long as those on the others (a heuristic).
        """
        return {
            slot.name: {
                leaf: _mean_component(slot.name, array, k)
                for leaf, array in leaves.items()
                if _lifts(slot.owner).get(leaf, _same) is not _same
            }
            for slot, leaves in zip(self.slots, self.moments().values(), strict=True)
        }

    def write(self, moments: Moments) -> None:
        """Put these leaves in the place of the present ones, and evaluate them."""
        for name, _, leaves in self.slots:
            if ACROSS.get(name) in leaves:
                along = ALONG[name]
                leaves[ACROSS[name]] = _mean_across(
                    leaves[ACROSS[name]], leaves[along], moments[name][along]
                )
            leaves.update(moments[name])
            mx.eval(leaves)


def select_moments(moments: Moments, indices: Sequence[int]) -> Moments:
    """Return the moments of some components, in the order of ``indices``, bits unchanged."""
    chosen = mx.array(list(indices), dtype=mx.int32)
    return _map(moments, lambda name, leaf, a: mx.take(a, chosen, axis=_axis(name, a)))


def extended(moments: Moments, k: int, tail: Moments | None = None) -> Moments:
    """Append ``k`` components: those of ``tail`` leaf by leaf, zero where it has no such leaf."""

    def appended(name: str, leaf: str, array: mx.array) -> mx.array:
        axis = _axis(name, array)
        shape = list(array.shape)
        shape[axis] = k
        new = (tail or {}).get(name, {}).get(leaf, mx.zeros(shape, array.dtype))
        return mx.concatenate([array, new.astype(array.dtype)], axis=axis)

    return _map(moments, appended)


def single_optimizers(optimizer: optim.Optimizer) -> list[optim.Optimizer]:
    """Return the optimizers that hold state themselves: those of a ``MultiOptimizer``, or it."""
    if isinstance(optimizer, optim.MultiOptimizer):
        return [single for inner in optimizer.optimizers for single in single_optimizers(inner)]
    return [optimizer]


def _mean_component(name: str, array: mx.array, k: int) -> mx.array:
    """Return the mean over the components of a leaf, ``k`` times; zero where there are none."""
    axis = _axis(name, array)
    shape = [*array.shape]
    shape[axis] = k
    if array.shape[axis] == 0:
        return mx.zeros(shape)
    return mx.broadcast_to(array.astype(mx.float32).mean(axis=axis, keepdims=True), shape)


def _slots(singles: list[optim.Optimizer], path: str) -> Iterator[Slot]:
    for owner in singles:
        node: Any = owner.state
        for part in path.split(".") if path else []:
            node = _child(node, part)
        for name in AXIS:
            leaves = _child(node, name)
            if leaves:
                yield Slot(name, owner, leaves)


def _child(node: Any, part: str) -> Any:
    """Return the child of a state tree, an empty dict where there is none."""
    if isinstance(node, list):
        return node[int(part)] if int(part) < len(node) else {}
    return node.get(part, {})


def _check_shapes(slot: Slot, path: str, shape: tuple[int, ...]) -> None:
    name, owner, leaves = slot
    for leaf, array in leaves.items():
        expected = shape
        if leaf == ALONG.get(name):
            expected = (shape[AXIS[name]],)
        if leaf == ACROSS.get(name):
            expected = (shape[1 - AXIS[name]],)
        if array.shape != expected:
            raise TypeError(
                f"`optimizer` {type(owner).__name__} keeps '{leaf}' of shape {array.shape} for "
                f"'{path}.{name}' of shape {shape}, where {expected} can follow a change of rank."
            )


def _lifts(owner: optim.Optimizer) -> dict[str, Lift]:
    """Return the leaves of an optimizer that are known, by name."""
    return next((LIFTS[kind] for kind in type(owner).__mro__ if kind in LIFTS), {})


def _lift(owner: optim.Optimizer, leaf: str) -> Lift:
    if leaf in (known := _lifts(owner)):
        return known[leaf]
    raise TypeError(
        f"`optimizer` {type(owner).__name__} keeps '{leaf}', which has no known change of basis; "
        f"use one of {', '.join(sorted(kind.__name__ for kind in LIFTS))} or a subclass."
    )


def _turn(name: str, array: mx.array, T: Matrix) -> mx.array:
    values = np.array(array.astype(mx.float32))
    turned = T.T @ values if name == "Vh" else values @ T
    return mx.array(turned).astype(array.dtype)


def _mean_across(across: mx.array, old: mx.array, new: mx.array) -> mx.array:
    """Keep the row and the column means of one matrix of squares at one common mean.

    Heuristic. A layer made without components has none to keep: start from zero.
    """
    if old.size == 0:
        return mx.zeros_like(across)
    before = old.astype(mx.float32).mean()
    ratio = mx.where(before > 0, new.astype(mx.float32).mean() / before, 0)
    return (across * ratio).astype(across.dtype)


def _axis(name: str, array: mx.array) -> int:
    return min(AXIS[name], array.ndim - 1)


def _map(moments: Moments, change: Callable[[str, str, mx.array], mx.array]) -> Moments:
    return {
        name: {leaf: change(name, leaf, array) for leaf, array in leaves.items()}
        for name, leaves in moments.items()
    }
