"""A tenth of the rows is held out, drawn by the seed."""

from __future__ import annotations

import pytest
from plastic_export.training.data.held_out import hold_out


@pytest.mark.parametrize(
    ("rows", "most", "count"), [(100, 99, 10), (100, 4, 4), (2000, 100, 100), (3, 2, 1), (19, 9, 1)]
)
def test_how_many(rows: int, most: int, count: int) -> None:
    train, valid = hold_out(range(rows), most=most, seed=0)
    assert len(valid) == count
    assert sorted(train + valid) == list(range(rows))
    assert (train, valid) == (sorted(train), sorted(valid))


def test_the_seed_draws_them() -> None:
    drawn = [tuple(hold_out(range(1000), most=100, seed=seed)[1]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(drawn[0]) > 900
    assert min(drawn[0]) < 100
