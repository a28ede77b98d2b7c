"""Work dealt out: everything once, evenly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from plastic_runtime.distributed import dealt, stretch

COSTS = st.lists(st.floats(0, 1e6), max_size=40)
SIZES = st.integers(1, 9)


@given(COSTS, SIZES)
def test_everything_is_dealt_once_and_no_hand_costs_much_more_than_the_mean(
    costs: list[float], size: int
) -> None:
    hands = dealt(costs, size)
    assert len(hands) == size
    assert sorted(item for hand in hands for item in hand) == list(range(len(costs)))
    assert all(hand == sorted(hand) for hand in hands)
    most = max(sum(costs[item] for item in hand) for hand in hands)
    least = max([sum(costs) / size, *costs])
    assert most <= 2 * least * (1 + 1e-9)


def test_equal_items_are_dealt_equally() -> None:
    assert [len(hand) for hand in dealt([3.0] * 10, 4)] == [3, 3, 2, 2]


@given(st.integers(1, 200), SIZES)
def test_stretches_are_neighbours_of_nearly_one_length(count: int, places: int) -> None:
    parts = [stretch(count, place, places) for place in range(places)]
    assert [number for part in parts for number in part] == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert count < places or min(lengths) >= 1
