"""From the linear relaxation to the best choice of whole options."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plastic_select.allocation.hull import Floats, Frontier, Ints
from plastic_select.allocation.relaxation import Relaxation
from plastic_select.spectrum import EPS

WORK = 4_000_000  # partial choices and segments looked at
WIDTH = 1000  # partial choices kept after each matrix, in the first sweep
FACTOR = 8


def finish(f: Frontier, lp: Relaxation) -> tuple[Ints, bool]:
    """Return the best rows found, one per matrix, and whether it is proven that none are better.

    Dynamic programming over the matrices that a better choice can change, those with the largest
    options first, so that what is left to fill gets finer. A partial choice goes when another
    takes no more bytes and costs no more, or when the relaxation of the matrices not yet decided
    cannot bring it below the best choice known; filling these up by steepest descent gives new
    choices all the while. Where too many remain, those of least bound do, and the bounds of the
    others tell whether the sweep has proven anything; if it has not, the next one is wider.

    At most ``WORK`` steps, so that the same arguments give the same rows on any machine.

    References:
        Pisinger, *A minimal algorithm for the multiple-choice knapsack problem*, European Journal
        of Operational Research 83(2), 1995 (the core, its dynamic programming and the bounds; the
        order, the bound by all of the rest and the widening are heuristic).
    """
    search, width = _Search(f, lp), WIDTH
    while not search.proven and search.work < WORK:
        gap = search.gap
        search.sweep(width)
        if search.gap >= gap / FACTOR:
            width *= FACTOR
    return search.chosen, search.proven


@dataclass(frozen=True)
class _Rest:
    """The matrices not yet decided: their segments, the steepest first, around the LP's choice.

    ``nbytes`` and ``cost`` are what they take and cost beyond it, before and after each segment.
    """

    segments: Ints
    nbytes: Ints
    cost: Floats

    def relaxed(self, room: Ints) -> Floats:
        """The least cost of a mixture within ``room`` bytes; infinite where there is none."""
        least: Floats = np.interp(room, self.nbytes, self.cost, left=np.inf)
        return least

    def filled(self, room: Ints) -> Ints:
        """How many segments fit."""
        return np.searchsorted(self.nbytes, room, side="right") - 1


@dataclass(frozen=True)
class _States:
    """Partial choices: the bytes they leave, their cost and bound beyond the LP's choice.

    ``row`` is what they choose for the last matrix, ``parent`` the state that they extend.
    """

    room: Ints
    cost: Floats
    bound: Floats
    parent: Ints
    row: Ints

    def __len__(self) -> int:
        return self.room.size

    def __getitem__(self, keep: Ints | NDArray[np.bool_]) -> _States:
        columns = (self.room[keep], self.cost[keep], self.bound[keep])
        return _States(*columns, self.parent[keep], self.row[keep])


class _Search:
    def __init__(self, f: Frontier, lp: Relaxation) -> None:
        self.f, self.lp = f, lp
        self.nbytes = f.nbytes - f.nbytes[lp.chosen][f.owner]
        self.cost = f.cost - f.cost[lp.chosen][f.owner]
        self.regret = self.cost + lp.price * self.nbytes  # what a row adds to the LP's bound
        self.taken = np.arange(f.end.size) < lp.taken
        self.nearer = self.regret[np.where(self.taken, f.end, f.start)]
        self.chosen, self.best = lp.chosen, 0.0
        self.proven, self.work = False, 0

    @property
    def gap(self) -> float:
        """The best cost known less the LP's bound."""
        return max(self.best + self.lp.price * self.lp.room, 0.0)

    @property
    def goal(self) -> float:
        """What is better than the best cost known by more than rounding."""
        return self.best - 4 * EPS * (self.lp.cost + self.best)

    def sweep(self, width: int) -> None:
        """Decide one matrix after the other, or until the gap is so small that far fewer do."""
        enough, dropped = self.gap / FACTOR, math.inf
        groups, segments, place = self._core()
        zero = np.zeros(1, np.int64)
        states = _States(zero + self.lp.room, np.zeros(1), np.zeros(1), zero, zero)
        path: list[_States] = []
        for number, group in enumerate(groups):
            rows = group[self.regret[group] < self.gap]
            if not rows.size:
                continue
            rows = np.append(rows, self.lp.chosen[self.f.owner[rows[0]]])
            rest = self._rest(segments[place > number])
            self.work += len(states) * rows.size + rest.segments.size
            if self.work > WORK or self.gap < enough:
                return
            states = self._extend(states, rows, rest)
            if len(states):
                states = self._improve(states, rest, path)
            states, bound = _narrowed(_undominated(states), width)
            dropped = min(dropped, bound)
            if not len(states):
                break
            path.append(states)
        self.proven = dropped >= self.goal

    def _core(self) -> tuple[list[Ints], Ints, Ints]:
        """The rows that a better choice can hold, by matrix; the segments of these matrices."""
        f = self.f
        rows = np.flatnonzero((self.regret < self.gap) & (self.nbytes != 0))
        groups = np.split(rows, np.flatnonzero(np.diff(f.owner[rows], prepend=-1)))[1:]
        groups.sort(key=lambda group: -int(np.abs(self.nbytes[group]).max()))
        place = np.full(f.smallest.size, -1)
        for number, group in enumerate(groups):
            place[f.owner[group[0]]] = number
        place = place[f.owner[f.end]]
        segments = np.flatnonzero((place >= 0) & (self.nearer < self.gap))
        return groups, segments, place[segments]

    def _rest(self, segments: Ints) -> _Rest:
        segments = segments[self.nearer[segments] < self.gap]
        nbytes, cost = self.f.change(segments)
        n = int(np.count_nonzero(self.taken[segments]))
        # Summed away from the LP's choice, where small numbers matter.
        before = -np.cumsum(nbytes[:n][::-1])[::-1], -np.cumsum(cost[:n][::-1])[::-1]
        after = np.cumsum(nbytes[n:]), np.cumsum(cost[n:])
        return _Rest(
            segments,
            np.concatenate([before[0], [0], after[0]]),
            np.concatenate([before[1], [0.0], after[1]]),
        )

    def _extend(self, states: _States, rows: Ints, rest: _Rest) -> _States:
        """Every state with every row, but for those that cannot beat the best choice known."""
        room = np.subtract.outer(states.room, self.nbytes[rows]).ravel()
        cost = np.add.outer(states.cost, self.cost[rows]).ravel()
        bound = cost + rest.relaxed(room)
        alive = np.flatnonzero(bound < self.goal)
        parent, row = np.divmod(alive, rows.size)
        return _States(room[alive], cost[alive], bound[alive], parent, rows[row])

    def _improve(self, states: _States, rest: _Rest, path: list[_States]) -> _States:
        """Fill up what the states leave. Where that beats the best known, so must every bound."""
        filled = rest.filled(states.room)
        total = states.cost + rest.cost[filled]
        i = int(np.argmin(total))
        if total[i] < self.best:
            self.best = float(total[i])
            undone, done = rest.segments[filled[i] :][::-1], rest.segments[: filled[i]]
            decided = np.array(_trace([*path, states], i))
            self.chosen = self.lp.chosen.copy()
            for rows in (self.f.start[undone], self.f.end[done], decided):
                self.chosen[self.f.owner[rows]] = rows  # of several in a matrix, the last
        return states[states.bound < self.goal]


def _trace(path: list[_States], i: int) -> list[int]:
    """Return the rows of state i of the last step."""
    rows = []
    for states in reversed(path):
        rows.append(int(states.row[i]))
        i = int(states.parent[i])
    return rows


def _undominated(states: _States) -> _States:
    """Leave out states that cost no less than another that leaves no fewer bytes."""
    order = np.lexsort((states.cost, -states.room))
    cost = states.cost[order]
    keep = np.ones(order.size, np.bool_)
    keep[1:] = cost[1:] < np.minimum.accumulate(cost)[:-1]
    return states[order[keep]]


def _narrowed(states: _States, width: int) -> tuple[_States, float]:
    """The states of least bound, nearest to the budget among equals; the least bound left out."""
    if len(states) <= width:
        return states, math.inf
    order = np.lexsort((np.abs(states.room), states.bound))
    return states[np.sort(order[:width])], float(states.bound[order[width]])
