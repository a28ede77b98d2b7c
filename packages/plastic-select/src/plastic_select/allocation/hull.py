"""The lower convex hull of every matrix's options."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Frontier:
    """The options worth choosing, and the hulls below them.

    A row is an option that no other of its matrix beats or equals in both bytes and cost. Rows go
    by matrix, then by bytes: within a matrix bytes increase and costs decrease. A segment joins
    two neighbouring vertices of a hull; segments go by slope, the steepest first, so that those
    of one matrix are in the order of its vertices.

    Attributes:
        owner: The matrix of each row.
        nbytes: The bytes of each row.
        cost: The cost of each row.
        source: The position of each row among all options.
        smallest: The first row of each matrix.
        start: The row where each segment starts.
        end: The row where each segment ends.
    """

    owner: Ints
    nbytes: Ints
    cost: Floats
    source: Ints
    smallest: Ints
    start: Ints
    end: Ints

    def change(self, segments: Ints | slice) -> tuple[Ints, Floats]:
        """Return what each of these segments adds in bytes (positive) and in cost (negative)."""
        start, end = self.start[segments], self.end[segments]
        return self.nbytes[end] - self.nbytes[start], self.cost[end] - self.cost[start]


def frontier(owner: Ints, nbytes: Ints, cost: Floats) -> Frontier:
    """Return the frontier of options given as one entry per option in each array.

    Sorting and one scan: O(N log N) for N options. Of equal options the first one stays.

    References:
        Andrew, *Another efficient algorithm for convex hulls in two dimensions*, Information
        Processing Letters 9(5), 1979 (the scan).
        Sinha and Zoltners, *The multiple-choice knapsack problem*, Operations Research 27(3),
        1979, https://doi.org/10.1287/opre.27.3.503 (both dominances).
    """
    order = np.lexsort((cost, nbytes, owner))
    rows, vertices = _scan(owner[order], nbytes[order], cost[order])
    source = order[rows]
    owner, nbytes, cost = owner[source], nbytes[source], cost[source]
    inner = owner[vertices[1:]] == owner[vertices[:-1]]
    start, end = vertices[:-1][inner], vertices[1:][inner]
    slope = (cost[end] - cost[start]) / (nbytes[end] - nbytes[start])
    steepest = np.argsort(slope, kind="stable")
    smallest = np.flatnonzero(np.diff(owner, prepend=-1))
    return Frontier(owner, nbytes, cost, source, smallest, start[steepest], end[steepest])


def _scan(owner: Ints, nbytes: Ints, cost: Floats) -> tuple[Ints, Ints]:
    """Find the sorted options that are not beaten, and the vertices among them.

    Popping by the very slopes that segments are sorted by keeps those of a matrix in order.
    """
    x, y = nbytes.astype(np.float64).tolist(), cost.tolist()
    rows: list[int] = []
    vertices: list[int] = []
    slopes: list[float] = []  # of the segments into the vertices
    current = -1
    for i, matrix in enumerate(owner.tolist()):
        if matrix != current:
            current, slope = matrix, -math.inf
        elif y[i] >= y[rows[-1]]:
            continue
        else:
            slope = (y[i] - y[vertices[-1]]) / (x[i] - x[vertices[-1]])
            while slopes[-1] >= slope:
                del vertices[-1], slopes[-1]
                slope = (y[i] - y[vertices[-1]]) / (x[i] - x[vertices[-1]])
        rows.append(i)
        vertices.append(i)
        slopes.append(slope)
    kept = np.array(rows)
    return kept, np.searchsorted(kept, vertices)
