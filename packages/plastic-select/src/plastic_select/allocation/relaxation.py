"""The linear relaxation: one matrix may mix two of its options."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from plastic_select.allocation.hull import Frontier, Ints


@dataclass(frozen=True)
class Relaxation:
    """Its optimum under one budget, and what is left when the mixed matrix keeps the smaller.

    Attributes:
        chosen: A row of the frontier for each matrix, a vertex of its hull.
        taken: How many segments, of the steepest, lead there.
        room: Bytes that this leaves of what the options can fill.
        price: The Lagrangian multiplier: cost per byte on the segment that is taken in part, 0.0
            if none is.
        cost: Cost of the rows chosen.
        bound: Cost of the relaxation, at most that of any choice within the budget.
    """

    chosen: Ints
    taken: int
    room: int
    price: float
    cost: float
    bound: float


class Descent:
    """Steepest descent from the smallest options: sorted once, then any number of budgets.

    References:
        Zemel, *The linear multiple choice knapsack problem*, Operations Research 28(6), 1980.
        Shoham and Gersho, *Efficient bit allocation for an arbitrary set of quantizers*, IEEE
        Trans. ASSP 36(9), 1988 (the multiplier).
    """

    def __init__(self, frontier: Frontier) -> None:
        self.frontier = frontier
        smallest = frontier.nbytes[frontier.smallest]
        self.least = int(smallest.sum())
        self.spent = np.cumsum(frontier.change(slice(None))[0])
        self.most = int(self.spent[-1]) if self.spent.size else 0
        self.step = int(np.gcd.reduce(frontier.nbytes - smallest[frontier.owner]))

    def relax(self, room: int) -> Relaxation:
        """Solve the relaxation with ``room`` bytes, at least 0, beyond the least possible."""
        f = self.frontier
        room = min(room, self.most)
        room -= room % max(self.step, 1)  # no choice can use the rest
        taken = int(np.searchsorted(self.spent, room, side="right"))
        chosen = f.smallest.copy()
        chosen[f.owner[f.end[:taken]]] = f.end[:taken]  # of several in a matrix, the last
        if taken:
            room -= int(self.spent[taken - 1])
        costs = f.cost[chosen]
        cost = math.fsum(costs)
        if taken == f.end.size:
            return Relaxation(chosen, taken, room, 0.0, cost, cost)
        start, end = f.start[taken], f.end[taken]
        nbytes, gain = f.nbytes[end] - f.nbytes[start], f.cost[start] - f.cost[end]
        share = room / nbytes
        costs[f.owner[end]] = (1 - share) * f.cost[start] + share * f.cost[end]
        return Relaxation(chosen, taken, room, float(gain / nbytes), cost, math.fsum(costs))
