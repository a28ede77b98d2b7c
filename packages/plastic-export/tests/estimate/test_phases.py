"""Work grows as it must with tokens, sizes and options."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plastic_export.estimate.model_shape import ModelShape, WeightShape
from plastic_export.estimate.parts import Calibrated
from plastic_export.estimate.phases import (
    evaluation_work,
    forward_work,
    learning_work,
    writing_work,
)
from plastic_export.estimate.planning import planning_work
from plastic_export.estimate.speed import SLOW, Work


def model(side: int, blocks: int = 2) -> ModelShape:
    inside = [WeightShape(f"layers.{i}.w", side, side, 1, 2 * side**2) for i in range(blocks)]
    return ModelShape((*inside, WeightShape("head", 4 * side, side, 1, 8 * side**2)))


def plan(shape: ModelShape, **options: object) -> Work:
    settings = {
        "tokens": 100,
        "pulled": 25,
        "batches": 4,
        "groups": [],
        "probed": 10,
        "corrected": False,
        "tried": 1,
        "trial": 10,
    } | options
    widest = settings.pop("widest", 10**6)
    calibrated = Calibrated(shape.weights, frozenset(), {}, widest)  # type: ignore[arg-type]
    return planning_work(shape, calibrated, **settings).alone  # type: ignore[arg-type]


def test_a_forward_pass_multiplies_each_weight_once_per_token() -> None:
    shape = model(8)
    assert forward_work(shape, 6) == forward_work(shape, 3).times(2)
    ratio = forward_work(shape, 1).products / shape.entries
    assert 1 <= ratio < 2  # the embedding is not among the weights here


def write(shape: ModelShape) -> Work:
    return writing_work(shape, shape.weights, widest=10**6, ranks=False)


@pytest.mark.parametrize("work", [plan, write])
def test_prices_and_rounding_grow_with_the_third_power_of_the_side(
    work: Callable[[ModelShape], Work],
) -> None:
    small, large = work(model(2**10)).doubles, work(model(2**11)).doubles
    assert large == pytest.approx(8 * small)


def test_time_is_linear_in_the_number_of_blocks() -> None:
    two, four, six = (plan(model(64, n)).seconds(SLOW) for n in (2, 4, 6))
    assert four - two == pytest.approx(six - four)


def test_what_is_asked_for_beside_costs_more() -> None:
    shape = model(256)
    assert plan(shape, corrected=True).seconds(SLOW) > plan(shape).seconds(SLOW)
    assert plan(shape, groups=[shape.weights]).doubles > plan(shape).doubles
    assert plan(shape, tried=2).seconds(SLOW) > plan(shape).seconds(SLOW)
    assert plan(shape, tokens=0, pulled=0).seconds(SLOW) < plan(shape).seconds(SLOW)
    assert plan(shape, widest=16).products < plan(shape).products
    assert (
        learning_work(shape, learnt=8, judged=0, trained=False).products
        > forward_work(shape, 8).products
    )
    trained = learning_work(shape, learnt=8, judged=0, trained=True)
    assert trained.trained == learning_work(shape, learnt=8, judged=0, trained=False).products
    assert evaluation_work(shape, 8, 2) == evaluation_work(shape, 8, 1).times(2)
