"""Partial choices: what the search knows of the matrices that it has decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plastic_select.allocation.hull import Floats, Ints


@dataclass(frozen=True)
class States:
    """Partial choices, one per entry of each array. Bytes and costs count from the LP's choice.

    Attributes:
        room: Bytes that the choice leaves; negative if the matrices not yet decided must give
            some back.
        cost: Cost of the choice.
        bound: The least that it can cost when every matrix is decided.
        parent: The state of the matrix before that it extends.
        row: The row of the frontier that it chooses for the last matrix decided.
    """

    room: Ints
    cost: Floats
    bound: Floats
    parent: Ints
    row: Ints

    @classmethod
    def start(cls, room: int) -> States:
        """Return the one state in which no matrix is decided."""
        zero, nothing = np.zeros(1, np.int64), np.zeros(1)
        return cls(zero + room, nothing, nothing, zero, zero)

    def __len__(self) -> int:
        return self.room.size

    def __getitem__(self, which: Ints | NDArray[np.bool_]) -> States:
        columns = (self.room[which], self.cost[which], self.bound[which])
        return States(*columns, self.parent[which], self.row[which])

    def undominated(self) -> States:
        """Leave out states that cost no less than another that leaves no fewer bytes."""
        order = np.lexsort((self.cost, -self.room))
        cost = self.cost[order]
        is_cheaper = np.ones(order.size, np.bool_)
        is_cheaper[1:] = cost[1:] < np.minimum.accumulate(cost)[:-1]
        return self[order[is_cheaper]]

    def narrowed(self, width: int) -> tuple[States, float]:
        """Return the ``width`` states of least bound, and the least bound of those left out.

        Of equal bounds the states nearest to the budget stay.
        """
        if len(self) <= width:
            return self, math.inf
        order = np.lexsort((np.abs(self.room), self.bound))
        return self[np.sort(order[:width])], float(self.bound[order[width]])


def rows_of(history: Sequence[States], i: int) -> Ints:
    """Return the rows that state ``i`` of the last matrix and the states before it have chosen."""
    rows = []
    for states in reversed(history):
        rows.append(int(states.row[i]))
        i = int(states.parent[i])
    return np.array(rows, np.int64)
