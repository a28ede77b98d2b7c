"""Parked components: asleep outside their layer, bit for bit."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np
from plastic_core import Factors, linalg

Moments = dict[str, dict[str, mx.array]]
"""Optimizer state by factor name ("U", "S", "Vh") and leaf name (as the optimizer calls it)."""


class Parked(NamedTuple):
    """One component asleep.

    Attributes:
        id: Number of the component, never given to another.
        path: Path of the layer it came from.
        U: Its left direction, shape ``(out,)``.
        S: Its weight, shape ``()``.
        Vh: Its right direction, shape ``(in,)``.
        moments: Its share of the optimizer state; empty where it was parked without one.

    Examples:
        >>> sleep = SleepDict()
        >>> ids = sleep.park("up", Factors(mx.eye(3, 1), mx.array([5.0]), mx.eye(1, 2)))
        >>> parked = sleep.get(ids[0])
        >>> parked.id, parked.S.item(), parked.nbytes
        (0, 5.0, 24)
    """

    id: int
    path: str
    U: mx.array
    S: mx.array
    Vh: mx.array
    moments: Moments

    @property
    def nbytes(self) -> int:
        """Bytes of U, S and Vh."""
        return self.U.nbytes + self.S.nbytes + self.Vh.nbytes


class Asleep(Protocol):
    """The facts about a component that are known without its arrays."""

    @property
    def path(self) -> str:
        """Path of the layer it came from."""

    @property
    def nbytes(self) -> int:
        """Bytes of U, S and Vh."""


class SleepDict:
    """Components asleep, by the path of their layer and by an id of their own.

    Ids count up over the life of the store and are never used twice, also after saving and
    loading. Bits never change: storing, taking, saving and loading only copy. The store is no
    dict, list or array, so MLX does not mistake it for parameters where a module holds it.

    Examples:
        >>> sleep = SleepDict()
        >>> sleep.park("up", Factors(mx.eye(3, 2), mx.array([5.0, 4.0]), mx.eye(2, 3)))
        (0, 1)
        >>> factors, moments = sleep.take("up", [1])
        >>> factors.S.tolist(), sleep.ids("up")
        ([4.0], (0,))
    """

    def __init__(self) -> None:
        self._parked: dict[int, Parked] = {}
        self._next_id = 0

    def park(self, path: str, factors: Factors, moments: Moments | None = None) -> tuple[int, ...]:
        """Store k components of one layer and return their ids, in the order given.

        Args:
            path: Path of the layer.
            factors: U ``(out, k)``, S ``(k,)``, Vh ``(k, in)``.
            moments: Their optimizer state. The axis of size k is the last one for "U", the
                first one for "S" and "Vh", whatever the number of axes of a leaf.

        Returns:
            The k new ids.
        """
        parked = self._components(path, factors, moments)
        self._parked.update({p.id: p for p in parked})
        self._next_id += len(parked)
        return tuple(p.id for p in parked)

    def ids(self, path: str) -> tuple[int, ...]:
        """Return the ids asleep for one layer, oldest first."""
        return tuple(id for id, entry in self._entries().items() if entry.path == path)

    def get(self, id: int) -> Parked:
        """Return one component, which stays asleep.

        Raises:
            ValueError: If no component of that id is asleep.
        """
        try:
            return self._parked[id]
        except KeyError:
            raise ValueError(f"`id` must be that of a component asleep, got {id}.") from None

    def read(self, path: str, ids: Iterable[int]) -> tuple[Factors, Moments]:
        """Return components of one layer, in the order of ``ids``; they stay asleep.

        Returns:
            Factors of rank ``len(ids)`` and their optimizer state, its component axis placed as
            in ``park``; zero for a component parked without a leaf that another one has.

        Raises:
            ValueError: If ``ids`` is empty, repeats one, or names one not asleep at ``path``.
        """
        parked = [self.get(id) for id in ids]
        at_path = {p.id for p in parked if p.path == path}
        if not parked or len(at_path) < len(parked):
            raise ValueError(
                f"`ids` must be distinct ids out of {list(self.ids(path))}, asleep for layer "
                f"'{path}', got {[p.id for p in parked]}."
            )
        factors = Factors(
            mx.stack([p.U for p in parked], axis=-1),
            mx.stack([p.S for p in parked]),
            mx.stack([p.Vh for p in parked]),
        )
        return factors, _stack_moments([p.moments for p in parked])

    def take(self, path: str, ids: Iterable[int]) -> tuple[Factors, Moments]:
        """Return components as ``read`` does and remove them from the store.

        Raises:
            ValueError: As ``read``; nothing is removed then.
        """
        ids = tuple(ids)
        factors, moments = self.read(path, ids)
        mx.eval(factors, moments)
        self._forget(ids)
        return factors, moments

    def release(self) -> None:
        """Say that what was taken is durable elsewhere; matters to a store on disk alone."""

    def paths(self) -> tuple[str, ...]:
        """Return the paths of the layers that have components asleep, sorted."""
        return tuple(sorted({entry.path for entry in self._entries().values()}))

    def __len__(self) -> int:
        return len(self._entries())

    @property
    def nbytes(self) -> int:
        """Bytes of all U, S and Vh asleep, counted as ``RankLayer.nbytes`` counts those awake.

        Optimizer state is not counted on either side.
        """
        return sum(entry.nbytes for entry in self._entries().values())

    def arrays(self) -> dict[str, mx.array]:
        """Return every array by a name of its own, for saving; ``meta`` completes it."""
        return {
            f"{id}.{name}": array
            for id, parked in self._parked.items()
            for name, array in named_arrays(parked)
        }

    def meta(self) -> dict[str, Any]:
        """Return what ``arrays`` leaves out, ready for JSON."""
        return {
            "next_id": self._next_id,
            "paths": {str(id): entry.path for id, entry in self._entries().items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, mx.array], meta: Mapping[str, Any]) -> "SleepDict":
        """Return the store that gave these ``arrays`` and this ``meta``."""
        store = cls()
        store.load(arrays, meta)
        return store

    def load(self, arrays: Mapping[str, mx.array], meta: Mapping[str, Any]) -> None:
        """Replace the content of this store by the one saved as ``arrays`` and ``meta``.

        Raises:
            ValueError: If an array is missing; the store is unchanged then.
        """
        if meta["paths"] and "digests" in meta:
            raise ValueError(
                "the components asleep are in a store on disk; give the manager that SleepStore."
            )
        parts: dict[str, dict[str, mx.array]] = {id: {} for id in meta["paths"]}
        for name, array in arrays.items():
            id, _, part = name.partition(".")
            if id in parts:
                parts[id][part] = array
        parked = {
            int(id): component_of(int(id), meta["paths"][id], named) for id, named in parts.items()
        }
        self._parked = dict(sorted(parked.items()))
        self._next_id = int(meta["next_id"])

    def _components(
        self, path: str, factors: Factors, moments: Moments | None
    ) -> tuple[Parked, ...]:
        """Return the components one by one, numbered from the next id on, in their own memory."""
        mx.eval(factors, moments or {})  # at once: waiting for each takes longer than the work
        named = {name: _components(name, part) for name, part in factors._asdict().items()}
        leaves = {
            (name, leaf): _components(name, array)
            for name, of_factor in (moments or {}).items()
            for leaf, array in of_factor.items()
        }
        return tuple(
            Parked(
                id=self._next_id + i,
                path=path,
                U=named["U"][i],
                S=named["S"][i],
                Vh=named["Vh"][i],
                moments=_component_moments(moments or {}, leaves, i),
            )
            for i in range(factors.rank)
        )

    def _entries(self) -> Mapping[int, Asleep]:
        """Return the components asleep, by id, oldest first."""
        return self._parked

    def _forget(self, ids: Iterable[int]) -> None:
        for id in ids:
            del self._parked[id]


def _component_moments(
    moments: Moments, leaves: Mapping[tuple[str, str], list[mx.array]], index: int
) -> Moments:
    return {
        name: {leaf: leaves[name, leaf][index] for leaf in of_factor}
        for name, of_factor in moments.items()
    }


def _components(name: str, array: mx.array) -> list[mx.array]:
    """Copy out every component: a slice would keep the whole buffer alive.

    Through NumPy: a gather for each component takes twenty times as long.
    """
    stored = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    rows = np.ascontiguousarray(np.moveaxis(linalg.to_numpy(stored), _axis(name), 0))
    copies = [mx.array(np.asarray(row)) for row in rows]
    return [copy.view(mx.bfloat16) for copy in copies] if stored is not array else copies


def _stack_moments(moments: list[Moments]) -> Moments:
    known = {
        (name, leaf): array
        for component in moments
        for name, leaves in component.items()
        for leaf, array in leaves.items()
    }
    stacked: Moments = {}
    for (name, leaf), example in known.items():
        zero = mx.zeros_like(example)
        rows = [component.get(name, {}).get(leaf, zero) for component in moments]
        stacked.setdefault(name, {})[leaf] = mx.stack(rows, axis=_axis(name))
    return stacked


def _axis(name: str) -> int:
    return -1 if name == "U" else 0


def named_arrays(parked: Parked) -> list[tuple[str, mx.array]]:
    """Return the arrays of a component by name, moments as ``factor.leaf``."""
    factors = [(name, getattr(parked, name)) for name in ("U", "S", "Vh")]
    moments = [
        (f"{name}.{leaf}", array)
        for name, leaves in parked.moments.items()
        for leaf, array in leaves.items()
    ]
    return factors + moments


def component_of(id: int, path: str, parts: Mapping[str, mx.array]) -> Parked:
    """Return the component whose ``named_arrays`` these are.

    Raises:
        ValueError: If a factor is missing.
    """
    missing = [name for name in ("U", "S", "Vh") if name not in parts]
    if missing:
        raise ValueError(f"`arrays` must hold '{id}.{missing[0]}' of layer '{path}'.")
    moments: Moments = {}
    for part, array in parts.items():
        name, _, leaf = part.partition(".")
        if leaf:
            moments.setdefault(name, {})[leaf] = array
    return Parked(id, path, parts["U"], parts["S"], parts["Vh"], moments)
