"""Work dealt out to processes. Pure: every process computes the same hands."""

from __future__ import annotations

from collections.abc import Sequence


def dealt(costs: Sequence[float], size: int) -> list[list[int]]:
    """Deal items out so that the costliest hand costs little more than the mean.

    The costliest item first, each to the hand that has cost least so far: at most 4/3 of the least
    possible (Graham, *Bounds on multiprocessing timing anomalies*, SIAM J. Appl. Math. 17(2), 1969,
    theorem 2).

    Args:
        costs: What every item costs, in any unit.
        size: How many hands there are.

    Returns:
        The numbers of the items of every hand, in order.

    Examples:
        >>> dealt([1.0, 5.0, 2.0, 2.0], 2)
        [[1], [0, 2, 3]]
    """
    hands: list[list[int]] = [[] for _ in range(size)]
    totals = [0.0] * size
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        least = min(range(size), key=lambda hand: (totals[hand], hand))
        hands[least].append(item)
        totals[least] += costs[item]
    return [sorted(hand) for hand in hands]


def stretch(count: int, place: int, places: int) -> range:
    """Return the numbers below ``count`` that one of several equal places in a row has.

    Args:
        count: How many numbers there are, at least one for each place.
        place: Which of the places, from 0.
        places: How many there are.

    Examples:
        >>> [stretch(5, place, 2) for place in range(2)]
        [range(0, 2), range(2, 5)]
    """
    return range(count * place // places, count * (place + 1) // places)
