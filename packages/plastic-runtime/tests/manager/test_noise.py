"""Losses of known trend and known noise: what is measured, and when a plateau is declared."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from plastic_core import RankLayer
from plastic_runtime import PlasticityManager, Settings
from plastic_runtime.manager.noise import least_progress, loss_noise
from plastic_runtime.manager.policy import watch
from plastic_runtime.manager.state import PolicyState

RUN, FLAT = 60, 20  # validations of a run, and the one from which on the loss is flat


def noisy(count: int, deviation: float, seed: int, level: float = 2.7) -> np.ndarray:
    """A loss that falls by 0.045 per validation down to a level, where it stays."""
    falling = level + 0.045 * np.maximum(FLAT - np.arange(count), 0)
    noise: np.ndarray = deviation * np.random.default_rng(seed).standard_normal(count)
    return falling + noise


def plateau(losses: np.ndarray, numbers: Settings) -> int:
    """The validation at which the policy first declares a plateau; their number if it does not."""
    state = PolicyState()
    for number, loss in enumerate(losses):
        verdict, state = watch(numbers, state, float(loss))
        if verdict == "plateau":
            return number
    return len(losses)


def found(deviation: float, numbers: Settings, level: float = 2.7) -> np.ndarray:
    runs = (noisy(RUN, deviation, seed, level) for seed in range(200))
    return np.array([plateau(losses, numbers) for losses in runs])


def test_the_noise_about_a_line_is_measured() -> None:
    rng = np.random.default_rng(0)
    losses = 5 - 0.01 * np.arange(4000) + 0.03 * rng.standard_normal(4000)
    assert loss_noise(losses.tolist()) == pytest.approx(0.03, rel=0.05)


def test_the_jump_of_a_change_is_no_noise() -> None:
    losses = [1.0 + 0.01 * (-1) ** i for i in range(10)]
    jumped = [loss + (1.0 if i >= 5 else 0.0) for i, loss in enumerate(losses)]
    assert loss_noise(jumped) == pytest.approx(loss_noise(losses))


def test_progress_is_two_standard_errors_and_not_nothing_without_noise() -> None:
    losses = [1.0 + 0.01 * (-1) ** i for i in range(10)]
    assert least_progress(losses, 2, 1.0) == pytest.approx(2 * loss_noise(losses))
    assert least_progress(losses, 8, 1.0) == pytest.approx(loss_noise(losses))
    assert least_progress([3.0] * 10, 2, 3.0) == pytest.approx(3e-3)


@pytest.mark.parametrize("deviation", [0.0, 0.003, 0.01])
def test_a_plateau_is_seen_within_a_tenth_of_the_run_and_not_before_it(deviation: float) -> None:
    after = found(deviation, Settings()) - FLAT
    assert after.min() >= 0
    assert np.median(after) <= RUN / 10
    assert np.quantile(after, 0.9) <= 7


def test_a_fall_that_the_noise_hides_is_a_plateau_and_the_same_fall_without_it_is_none() -> None:
    creeping = 2.7 - 0.0015 * np.arange(RUN)
    noise = 0.01 * np.random.default_rng(1).standard_normal(RUN)
    assert plateau(creeping, Settings()) == RUN
    assert plateau(creeping + noise, Settings()) < RUN / 2
    # A constant cannot tell them apart.
    assert plateau(creeping, Settings(delta=4e-3)) < RUN / 2


def test_what_counts_is_the_noise_and_not_the_level_of_the_loss() -> None:
    numbers = Settings()
    np.testing.assert_array_equal(found(0.01, numbers, 2.7), found(0.01, numbers, 5.0))
    constant = Settings(delta=1e-3)
    assert (found(0.01, constant, 2.7) != found(0.01, constant, 5.0)).any()


def test_the_manager_grows_once_at_the_plateau_of_noisy_losses() -> None:
    model = nn.Sequential(RankLayer(mx.eye(6, 2), mx.ones(2), mx.eye(2, 6)))  # type: ignore[no-untyped-call]
    manager = PlasticityManager(model)
    events = [e for loss in noisy(FLAT + 8, 0.01, 0) for e in manager.step(float(loss))]
    (event,) = events
    assert event.action == "grow"
    assert FLAT <= event.step <= FLAT + RUN / 10
