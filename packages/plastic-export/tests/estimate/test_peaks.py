"""Peaks grow with what is held."""

from __future__ import annotations

from plastic_export.estimate.model_shape import ModelShape, WeightShape
from plastic_export.estimate.peaks import (
    calibration_peak,
    held_gram_bytes,
    learning_peak,
    probing_peak,
    rounding_peak,
    running_peak,
    trying_peak,
    whole_peak,
)

SIDE = 1024


def model(blocks: int) -> ModelShape:
    inside = [WeightShape(f"layers.{i}.w", SIDE, SIDE, 1, 2 * SIDE**2) for i in range(blocks)]
    return ModelShape((*inside, WeightShape("head", 2 * SIDE, SIDE, 1, 4 * SIDE**2)), heads=8)


def test_block_by_block_does_not_grow_with_the_blocks() -> None:
    assert running_peak(model(2), 1, 64) == running_peak(model(50), 1, 64)
    assert whole_peak(model(50), 1, 64) - whole_peak(model(2), 1, 64) == 48 * 4 * SIDE**2
    assert learning_peak(model(50), 1, 64) > whole_peak(model(50), 1, 64)


def test_a_window_beside_a_batch_is_held_with_it() -> None:
    alone, beside, longer = (learning_peak(model(2), 1, 64, beside=n) for n in (0, 64, 128))
    assert beside - alone == longer - beside > 4 * 64 * 2 * SIDE


def test_a_calibration_holds_the_grams_of_one_block() -> None:
    few, many = (
        calibration_peak(m, m.weights, rows=1, length=64, widest=10**6)
        for m in (model(2), model(50))
    )
    assert few == many
    shape = model(2)
    none = calibration_peak(shape, [], rows=1, length=64, widest=10**6)
    assert few - none == held_gram_bytes([shape.weights[-1]], 10**6)


def test_a_probe_holds_the_model_as_it_is_stored() -> None:
    few, many = (probing_peak(model(n), tokens=64, length=64) for n in (2, 50))
    assert many - few == 48 * 2 * SIDE**2


def test_a_trial_holds_the_errors_of_one_block_beside_that() -> None:
    few, many = (
        trying_peak(model(n), tokens=64, length=64) - probing_peak(model(n), tokens=64, length=64)
        for n in (2, 50)
    )
    assert few == many >= 4 * SIDE**2


def test_the_most_demanding_matrix_decides() -> None:
    shape = model(2)
    assert rounding_peak(shape.weights, 10**6) == rounding_peak(shape.weights[-1:], 10**6)
    assert rounding_peak(shape.weights, 256) < rounding_peak(shape.weights, 10**6)
    stack = [WeightShape("e", SIDE, SIDE, 8, 0)]
    assert rounding_peak(stack, 10**6) == rounding_peak([stack[0]._replace(matrices=1)], 10**6)
