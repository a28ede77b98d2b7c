"""The options worth choosing and their hulls, against the definitions."""

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from plastic_select.allocation.hull import frontier

small_costs = st.integers(0, 12).map(float)
point_lists = st.lists(st.tuples(st.integers(0, 12), small_costs), min_size=1, max_size=12)


@example([[(0, 6.0), (2, 4.0), (4, 2.0), (6, 1.0)], [(0, 3.0), (3, 0.0), (1, 2.0)]])
@given(st.lists(point_lists, min_size=1, max_size=4))
def test_the_frontier_and_its_hull_are_those_of_the_definitions(
    matrices: list[list[tuple[int, float]]],
) -> None:
    flat = [point for points in matrices for point in points]
    owner = np.repeat(np.arange(len(matrices)), [len(points) for points in matrices])
    f = frontier(owner, np.array([x for x, _ in flat]), np.array([y for _, y in flat]))
    joined = [
        (
            int(f.owner[a]),
            (int(f.nbytes[a]), float(f.cost[a])),
            (int(f.nbytes[b]), float(f.cost[b])),
        )
        for a, b in zip(f.start, f.end, strict=True)
    ]
    for number, points in enumerate(matrices):
        best = sorted(p for p in set(points) if not any(beats(q, p) for q in set(points)))
        rows = np.flatnonzero(f.owner == number)
        assert list(zip(f.nbytes[rows].tolist(), f.cost[rows].tolist(), strict=True)) == best
        hull = [
            p
            for p in best
            if not any(
                p != a and p != b and on_or_above(p, a, b)
                for a, b in itertools.combinations(best, 2)
            )
        ]
        assert [(a, b) for i, a, b in joined if i == number] == list(itertools.pairwise(hull))
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for _, a, b in joined]
    assert slopes == sorted(slopes)


def beats(p: tuple[int, float], q: tuple[int, float]) -> bool:
    return p != q and p[0] <= q[0] and p[1] <= q[1]


def on_or_above(p: tuple[int, float], a: tuple[int, float], b: tuple[int, float]) -> bool:
    """Whether p lies on or above the segment from a to b, in exact arithmetic."""
    if not a[0] <= p[0] <= b[0]:
        return False
    share = Fraction(p[0] - a[0], b[0] - a[0])
    return Fraction(p[1]) >= (1 - share) * Fraction(a[1]) + share * Fraction(b[1])
