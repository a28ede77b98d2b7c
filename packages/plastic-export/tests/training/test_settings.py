"""The numbers of a run: defaults that fit it, and refusals."""

from __future__ import annotations

import math

import pytest
from plastic_export.training.settings import TrainingOptions


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_learning_rate_is_finite_and_positive(rate: float) -> None:
    with pytest.raises(ValueError, match=f"must be a finite number above 0, got {rate}"):
        TrainingOptions(learning_rate=rate)


@pytest.mark.parametrize(
    ("steps", "accumulate", "max_bytes", "interval"),
    [
        (1000, 1, None, 50),
        (1000, 1, 1000, 50),
        (1000, 8, None, 48),
        (20, 1, None, 50),
        (20, 1, 1000, 10),
        (3, 1, 1000, 1),
        (2, 1, 1000, 1),
        (24, 4, 1000, 12),
        (192, 64, 1000, 64),
    ],
)
def test_a_run_validates_at_the_latest_in_time_to_be_cut(
    steps: int, accumulate: int, max_bytes: int | None, interval: int
) -> None:
    options = TrainingOptions(steps=steps, accumulate=accumulate, max_bytes=max_bytes)
    assert options.interval == interval
    schedule = options.schedule(10_000)
    if schedule is not None:
        assert schedule.end < steps
        assert schedule.due(schedule.end)
        assert schedule.end % interval == 0


def test_one_update_leaves_no_time_to_cut() -> None:
    with pytest.raises(ValueError, match="`evaluate_every` must be below the 4 `steps`"):
        TrainingOptions(steps=4, accumulate=4, max_bytes=1000)
