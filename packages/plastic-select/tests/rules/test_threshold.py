"""The optimal hard threshold, against its publication."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from plastic_select import (
    optimal_threshold_rank,
    singular_values,
)

Build = Callable[[Sequence[float], int, int, int], NDArray[np.float64]]


def test_the_threshold_of_a_square_matrix_is_exact() -> None:
    # For m = n the law's distribution function is (theta + sin theta) / pi at t = 2 - 2 cos theta.
    theta = 0.8
    for _ in range(9):
        theta -= (theta + np.sin(theta) - np.pi / 2) / (1 + np.cos(theta))
    omega = 4 / np.sqrt(3) / np.sqrt(2 - 2 * np.cos(theta))
    s = [omega * (1 + 1e-6), omega * (1 - 1e-6)] + [1.0] * 18
    assert optimal_threshold_rank(s, (20, 20)) == 1


@pytest.mark.parametrize(("shape", "coefficient"), [((40, 40), 2.858), ((20, 40), 2.172)])
def test_the_threshold_is_the_published_multiple_of_the_median(
    shape: tuple[int, int], coefficient: float
) -> None:
    s = np.ones(min(shape))
    s[0] = coefficient * 1.002
    assert optimal_threshold_rank(s, shape) == 1
    s[0] = coefficient * 0.998
    assert optimal_threshold_rank(s, shape) == 0


def test_the_threshold_for_known_noise_is_four_over_root_three() -> None:
    tau = 4 / np.sqrt(3) * np.sqrt(9) * 0.1
    s = [3.0, tau * (1 + 1e-9), tau * (1 - 1e-9)] + [0.0] * 6
    assert optimal_threshold_rank(s, (9, 9), noise=0.1) == 2


@pytest.mark.parametrize("shape", [(80, 80), (60, 120), (150, 40)])
def test_the_threshold_finds_a_rank_hidden_in_noise(
    matrix_from_spectrum: Build, shape: tuple[int, int]
) -> None:
    signal = matrix_from_spectrum([9.0, 8.0, 7.0], *shape, 1)
    noise = np.random.default_rng(2).standard_normal(shape) / np.sqrt(max(shape))
    s = singular_values(signal + noise)
    assert optimal_threshold_rank(s, shape) == 3
    assert optimal_threshold_rank(s, shape, noise=1 / np.sqrt(max(shape))) == 3
