"""The rank of every layer of an adapter, from one budget over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from plastic_runtime import ByteCount
from plastic_select import Option, allocate, rank_options

Spectra = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class RankGoal:
    """What an adapter is cut down to; one of the three is given.

    Attributes:
        max_bytes: Bytes of the file at most.
        energy: Fraction of the squared Frobenius norm over all layers that stays at least.
        rank: Rank of every layer at most.

    Examples:
        >>> RankGoal(energy=0.95).energy
        0.95
    """

    max_bytes: int | None = None
    energy: float | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        given = [n for n in ("max_bytes", "energy", "rank") if getattr(self, n) is not None]
        if len(given) != 1:
            named = " and ".join(f"`{name}`" for name in given) or "none"
            raise ValueError(f"one of `max_bytes`, `energy` and `rank` must be given, got {named}.")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"`energy` must be above 0 and at most 1, got {self.energy}.")
        for name in ("max_bytes", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")


def choose_adapter_ranks(spectra: Spectra, count: ByteCount, goal: RankGoal) -> dict[str, int]:
    """Return the rank of every layer that meets the goal at the least error.

    By bytes the error is the least that is possible, up to what `allocate` leaves open. By energy
    components are taken by what they hold per byte, until that is enough.

    Args:
        spectra: The singular values of every layer, by path.
        count: The bytes of the file at given ranks.
        goal: What is to be met.

    Raises:
        ValueError: If not even one component fits into the bytes.
    """
    if goal.rank is not None:
        return {path: min(goal.rank, _length(S)) for path, S in spectra.items()}
    if goal.energy is not None:
        return _by_energy(spectra, count, goal.energy)
    assert goal.max_bytes is not None
    ranks = (_padded if count.one_rank else _exact)(spectra, count, goal.max_bytes)
    if not any(ranks.values()):
        least = count.fixed + min(count.layer(path, 1) for path in spectra)
        raise ValueError(
            f"`max_bytes` must be at least {least}, the file with one component, "
            f"got {goal.max_bytes}."
        )
    return ranks


def _by_energy(spectra: Spectra, count: ByteCount, energy: float) -> dict[str, int]:
    paths = list(spectra)
    squares = [np.square(spectra[path].astype(np.float64)) for path in paths]
    owner = np.repeat(np.arange(len(paths)), [s.size for s in squares])
    held = np.concatenate(squares)
    per_byte = held / np.array([count.components[path] for path in paths])[owner]
    order = np.argsort(-per_byte, kind="stable")
    reached = np.cumsum(held[order])
    total = reached[-1] if reached.size else 0.0
    number = int(np.searchsorted(reached, energy * total * (1 - 1e-12))) + 1 if total else 0
    taken = np.bincount(owner[order[:number]], minlength=len(paths))
    return dict(zip(paths, taken.tolist(), strict=True))


def _exact(spectra: Spectra, count: ByteCount, nbytes: int) -> dict[str, int]:
    """Every layer at the bytes of its own rank."""
    options = {
        path: [
            Option(o.nbytes + count.layer(path, 0) * (o.label > 0), o.cost, o.label)
            for o in rank_options(S, bytes_per_component=count.components[path])
        ]
        for path, S in spectra.items()
    }
    return _allocated(options, nbytes - count.fixed)[0]


def _padded(spectra: Spectra, count: ByteCount, nbytes: int) -> dict[str, int]:
    """Every layer at the bytes of one rank for all, or left out: the best of these ranks."""
    costs = {path: _costs(S) for path, S in spectra.items()}
    best = {path: 0 for path in spectra}, float("inf")
    for rank in range(1, max(map(_length, spectra.values())) + 1):
        options = {
            path: [
                Option(0, cost[0], 0),
                Option(count.layer(path, rank), cost[min(rank, cost.size - 1)], rank),
            ]
            for path, cost in costs.items()
        }
        ranks, cost = _allocated(options, nbytes - count.fixed)
        if any(ranks.values()) and cost < best[1]:
            best = ranks, cost
    return {path: min(rank, _length(spectra[path])) for path, rank in best[0].items()}


def _costs(S: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what ranks 0, 1, ... drop, in half the squared norm."""
    return np.array([option.cost for option in rank_options(S, bytes_per_component=1)])


def _length(S: NDArray[np.float32]) -> int:
    """Return the number of components that are not zero."""
    return int(np.count_nonzero(S))


def _allocated(options: Mapping[str, list[Option]], nbytes: int) -> tuple[dict[str, int], float]:
    """Return the labels of the best choice and its cost; of none if the bytes are below 0."""
    if nbytes < 0:
        return {path: 0 for path in options}, float("inf")
    (found,) = allocate(options, [nbytes])
    return {path: options[path][i].label for path, i in found.chosen.items()}, found.cost
