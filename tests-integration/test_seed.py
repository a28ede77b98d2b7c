"""What a test draws at random is the same in every run of it."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


def test_a_layer_that_nobody_seeds_has_the_same_weights_in_every_run() -> None:
    drawn = nn.Linear(4, 4).weight
    mx.random.seed(1936)  # which conftest.py in the root sets before every test
    assert mx.array_equal(drawn, nn.Linear(4, 4).weight)
