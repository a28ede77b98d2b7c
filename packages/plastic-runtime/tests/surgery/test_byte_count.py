"""One rank for all: bytes as a file counts them that fills smaller ranks up."""

import itertools

import numpy as np
import pytest
from plastic_runtime import ByteCount
from plastic_runtime.surgery.schedule import Holding, redistribute

SIZES = {"a": 5, "b": 3, "c": 8}
NAMES = {"a": 1, "b": 4, "c": 2}


def lost(found: list[Holding], ranks: dict[str, int]) -> float:
    return sum(float(np.square(h.values[ranks[h.path] :]).sum()) / 2 for h in found)


def drawn(rng: np.random.Generator, floor: int) -> list[Holding]:
    return [
        Holding(path, tuple(sorted(rng.random(int(rng.integers(1, 4))), reverse=True)), size, floor)
        for path, size in SIZES.items()
    ]


@pytest.mark.parametrize("floor", [0, 1])
@pytest.mark.parametrize("one_rank", [False, True])
def test_no_other_choice_within_the_counted_bytes_loses_less(one_rank: bool, floor: int) -> None:
    rng = np.random.default_rng(0)
    count = ByteCount(SIZES, NAMES, fixed=7, one_rank=one_rank)
    for _ in range(40):
        found = drawn(rng, floor)
        budget = int(rng.integers(count(dict.fromkeys(SIZES, floor)), 80))
        every = [
            dict(zip(SIZES, ranks, strict=True))
            for ranks in itertools.product(*(range(floor, len(h.values) + 1) for h in found))
        ]
        ranks = redistribute(found, budget, count)
        assert count(ranks) <= budget
        best = min(lost(found, other) for other in every if count(other) <= budget)
        assert lost(found, ranks) == pytest.approx(best)


def test_many_ranks_are_tried_in_steps_and_the_budget_is_filled() -> None:
    rng = np.random.default_rng(1)
    found = [
        Holding(str(i), tuple(np.sort(rng.random(200))[::-1]), int(rng.integers(50, 90)), 0)
        for i in range(20)
    ]
    count = ByteCount({h.path: h.bytes_per_rank for h in found}, one_rank=True)
    for budget in (2_000, 20_000, 150_000):
        assert 0.85 * budget < count(redistribute(found, budget, count)) <= budget


def test_nothing_awake_takes_the_fixed_bytes_alone() -> None:
    count = ByteCount(SIZES, NAMES, fixed=7, one_rank=True)
    assert count(dict.fromkeys(SIZES, 0)) == count({}) == 7
    assert count({"a": 2, "b": 0, "c": 1}) == 7 + (1 + 2 * 5) + (2 + 2 * 8)
