"""Bytes over the steps, and how layers share them: decisions alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plastic_runtime import Schedule
from plastic_runtime.surgery.schedule import Holding, redistribute

values = st.lists(st.floats(0, 10), max_size=6).map(lambda v: tuple(sorted(v, reverse=True)))
layers = st.lists(st.tuples(values, st.integers(1, 50), st.integers(0, 1)), min_size=1, max_size=5)


def holdings(drawn: list[tuple[tuple[float, ...], int, int]]) -> list[Holding]:
    return [Holding(str(i), *own) for i, own in enumerate(drawn)]


def least(found: list[Holding]) -> int:
    return sum(min(h.floor, len(h.values)) * h.bytes_per_rank for h in found)


# Sharing


@given(drawn=layers, extra=st.integers(0, 400))
@settings(deadline=None, derandomize=True)
def test_ranks_fit_the_budget_and_the_floors(
    drawn: list[tuple[tuple[float, ...], int, int]], extra: int
) -> None:
    found = holdings(drawn)
    ranks = redistribute(found, least(found) + extra)
    assert sum(h.bytes_per_rank * ranks[h.path] for h in found) <= least(found) + extra
    assert all(min(h.floor, len(h.values)) <= ranks[h.path] <= len(h.values) for h in found)


def test_no_other_choice_loses_less() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = [
            Holding(str(i), tuple(sorted(rng.random(3), reverse=True)), int(rng.integers(1, 9)), 0)
            for i in range(3)
        ]
        budget = int(rng.integers(0, 40))
        every = np.stack(np.meshgrid(*[range(4)] * 3), axis=-1).reshape(-1, 3)
        fits = [r for r in every if _bytes(found, r) <= budget]
        ranks = redistribute(found, budget)
        lost = _lost(found, [ranks[h.path] for h in found])
        assert lost == pytest.approx(min(_lost(found, r) for r in fits))


def _bytes(found: list[Holding], ranks: list[int]) -> int:
    return sum(h.bytes_per_rank * r for h, r in zip(found, ranks, strict=True))


def _lost(found: list[Holding], ranks: list[int]) -> float:
    return sum(sum(np.square(h.values[r:])) / 2 for h, r in zip(found, ranks, strict=True))


def test_a_budget_below_one_component_per_layer_is_refused_with_the_least_one() -> None:
    found = [Holding("a", (1.0, 0.5), 10), Holding("b", (2.0,), 7)]
    with pytest.raises(ValueError, match=r"must be at least 17 bytes.*2 layers.*got 16"):
        redistribute(found, 16)


# Time


def test_the_budget_falls_from_the_first_to_the_last_along_a_cubic() -> None:
    schedule = Schedule(1000, 200, begin=10, end=30, every=5)
    assert [schedule.budget(t) for t in (0, 9, 10, 20, 30, 99)] == [1000, 1000, 1000, 300, 200, 200]
    budgets = [schedule.budget(t) for t in range(50)]
    assert budgets == sorted(budgets, reverse=True)
    assert [t for t in range(50) if schedule.due(t)] == [10, 15, 20, 25, 30]


def test_one_reallocation_has_begin_and_end_in_one() -> None:
    schedule = Schedule(1000, 200, begin=10, end=10, every=5)
    assert [t for t in range(30) if schedule.due(t)] == [10]
    assert (schedule.budget(9), schedule.budget(10)) == (1000, 200)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"last": 0}, "`last` must be from 1 to 1000"),
        ({"last": 1001}, "`last` must be from 1 to 1000"),
        ({"begin": 0}, "`begin` must be from 1 to 30"),
        ({"begin": 31}, "`begin` must be from 1 to 30"),
        ({"every": 0}, "`every` must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{"first": 1000, "last": 200, "begin": 10, "end": 30, "every": 5, **numbers})
