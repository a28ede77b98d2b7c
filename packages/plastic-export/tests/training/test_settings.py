"""The numbers of a run: defaults that fit it, and refusals."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest
from plastic_export.training.settings import TrainingOptions
from plastic_runtime import Settings


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_learning_rate_is_finite_and_positive(rate: float) -> None:
    with pytest.raises(ValueError, match=f"must be a finite number above 0, got {rate}"):
        TrainingOptions(learning_rate=rate)


@pytest.mark.parametrize(
    ("steps", "accumulate", "rank", "max_bytes", "interval"),
    [
        (1000, 1, 8, None, 10),
        (1000, 1, None, 1000, 50),
        (1000, 8, 8, None, 16),
        (10_000, 1, 8, None, 50),
        (160, 1, 8, None, 2),
        (20, 1, 8, None, 2),
        (20, 1, None, None, 10),
        (20, 1, None, 1000, 10),
        (3, 1, None, 1000, 1),
        (2, 1, None, None, 1),
        (24, 4, None, 1000, 12),
        (192, 64, None, 1000, 64),
    ],
)
def test_a_run_validates_at_the_latest_in_time_to_be_cut(
    steps: int, accumulate: int, rank: int | None, max_bytes: int | None, interval: int
) -> None:
    options = TrainingOptions(steps=steps, accumulate=accumulate, rank=rank, max_bytes=max_bytes)
    assert options.interval == interval
    assert options.by_budget == (rank is None)
    schedule = options.sized(1000).schedule(10_000)
    assert (schedule is not None) == options.by_budget
    if schedule is not None:
        assert schedule.end < steps
        assert schedule.due(schedule.end)
        assert schedule.end % interval == 0


def test_a_run_too_short_for_a_cut_keeps_its_ranks_unless_a_size_is_asked_for() -> None:
    assert not TrainingOptions(steps=1).by_budget
    assert not TrainingOptions(steps=4, accumulate=4).by_budget
    assert not TrainingOptions(steps=50, evaluate_every=50).by_budget
    assert TrainingOptions(steps=50, evaluate_every=25).by_budget


def test_a_default_size_goes_to_runs_that_follow_a_budget_without_one() -> None:
    assert TrainingOptions().sized(500).max_bytes == 500
    assert TrainingOptions(follow="budget", rank=9).sized(500).max_bytes == 500
    assert TrainingOptions(max_bytes=70).sized(500).max_bytes == 70
    assert TrainingOptions(follow="loss").sized(500).max_bytes is None
    assert TrainingOptions(rank=4).sized(500).max_bytes is None


@pytest.mark.parametrize("steps", [160, 1000, 3000])
def test_a_run_that_follows_the_loss_can_tell_a_plateau_within_a_tenth(steps: int) -> None:
    options = TrainingOptions(steps=steps, follow="loss")
    settings = Settings()
    assert options.interval * (settings.window + settings.patience) <= steps / 10
    # A batch of a validation is a forward pass, a third of a step.
    assert options.validated <= max(4, options.interval)
    patient = TrainingOptions(steps=steps, follow="loss", plasticity={"patience": 12})
    assert patient.interval * (settings.window + 12) <= max(steps / 10, 2 * 15)


def test_what_is_given_for_validations_is_taken() -> None:
    options = TrainingOptions(steps=1000, evaluate_every=40, evaluate_batches=-1)
    assert (options.interval, options.validated) == (40, -1)
    assert TrainingOptions(steps=1000, max_bytes=1000).validated == 25


def test_one_update_leaves_no_time_to_cut() -> None:
    with pytest.raises(ValueError, match="`evaluate_every` must be below the 4 `steps`"):
        TrainingOptions(steps=4, accumulate=4, max_bytes=1000)


@pytest.mark.parametrize(
    ("optimizer", "given", "rate"),
    [
        ("cautious", None, 1e-3),
        ("adamw", None, 7e-4),
        ("adam", None, 7e-4),
        ("lion", None, 3e-4),
        ("adamw", 2e-4, 2e-4),
    ],
)
def test_the_rate_is_that_of_the_optimizer_unless_one_is_given(
    optimizer: str, given: float | None, rate: float
) -> None:
    options = TrainingOptions(optimizer=optimizer, learning_rate=given)
    assert options.rate == options.record()["learning_rate"] == rate


@pytest.mark.parametrize(("given", "rise"), [(None, 5), (0, 0), (20, 20)])
def test_the_rate_rises_by_equal_steps_before_it_falls(given: int | None, rise: int) -> None:
    rate = {"optimizer": "sgd", "learning_rate": 6e-3, "warmup": given}
    options = TrainingOptions(steps=120, accumulate=2, **rate)
    assert options.rise == options.record()["warmup"] == rise
    sgd, rates = options.build_optimizer(), list[float]()
    for _ in range(60):
        sgd.apply_gradients({"x": mx.zeros(1)}, {"x": mx.zeros(1)})
        rates.append(sgd.learning_rate.item())
    rising = [6e-3 * (i + 1) / (rise + 1) for i in range(rise + 1)]
    falling = [3e-3 * (1 + math.cos(math.pi * i / (60 - rise))) for i in range(60 - rise)]
    assert rates == pytest.approx(rising + falling[1:], rel=1e-4, abs=1e-9)


def test_a_run_of_few_updates_does_not_warm_up() -> None:
    assert TrainingOptions(steps=11).rise == 0
    with pytest.raises(ValueError, match="`warmup` must be below the 11 updates"):
        TrainingOptions(steps=11, warmup=11)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "cautious"])
def test_no_step_of_adam_is_longer_than_its_rate_on_gradients_of_one_size(optimizer: str) -> None:
    options = TrainingOptions(optimizer=optimizer, learning_rate=1e-2, decay=False)
    adam, at = options.build_optimizer(), {"x": mx.zeros(4)}
    for _ in range(30):
        new = adam.apply_gradients({"x": mx.full(4, 0.5)}, at)
        assert mx.abs(new["x"] - at["x"]).max().item() <= 1.01e-2
        at = new
