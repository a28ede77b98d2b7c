"""The linear relaxation: one matrix may mix two of its options."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from plastic_select.allocation.hull import Frontier, Ints


@dataclass(frozen=True)
class Relaxation:
    """The optimum under one budget, and the whole choice in which the mixed matrix is rounded down.

    Attributes:
        chosen: The row of the frontier that each matrix has in the whole choice, a vertex of its
            hull.
        taken: How many of the segments, the steepest first, lead from the smallest rows there.
        room: Bytes of the budget that the whole choice leaves and that options can fill.
        price: The Lagrangian multiplier: cost per byte on the segment that is taken in part, 0.0
            if none is.
        cost: Cost of the whole choice.
        bound: Cost of the relaxation, at most that of any whole choice within the budget.
    """

    chosen: Ints
    taken: int
    room: int
    price: float
    cost: float
    bound: float


class Descent:
    """Steepest descent from the smallest options: sorted once, then any number of budgets.

    Attributes:
        frontier: What there is to choose from.
        least: Bytes of the smallest options of all matrices.
        spent: Bytes beyond these after each segment, the steepest first.
        most: Bytes beyond these that options can fill at all.
        step: Greatest common divisor of all bytes beyond these.

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
        front = self.frontier
        room = min(room, self.most)
        room -= room % max(self.step, 1)  # no choice can use the rest
        taken = int(np.searchsorted(self.spent, room, side="right"))
        chosen = front.smallest.copy()
        chosen[front.owner[front.end[:taken]]] = front.end[
            :taken
        ]  # of several in a matrix, the last
        if taken:
            room -= int(self.spent[taken - 1])
        costs = front.cost[chosen]
        cost = math.fsum(costs)
        if taken == front.end.size:
            return Relaxation(chosen, taken, room, 0.0, cost, cost)
        start, end = front.start[taken], front.end[taken]
        nbytes, gain = front.nbytes[end] - front.nbytes[start], front.cost[start] - front.cost[end]
        share = room / nbytes
        costs[front.owner[end]] = (1 - share) * front.cost[start] + share * front.cost[end]
        return Relaxation(chosen, taken, room, float(gain / nbytes), cost, math.fsum(costs))
