"""Groups of alike matrices, and what their samples say of all prices."""

from __future__ import annotations

import pytest
from plastic_export.plan.likeness import BANDS, SAMPLES, alike, in_a_block, samples_of
from plastic_export.plan.measured import GroupCost, PriceFactors
from plastic_export.plan.offers import Candidate
from plastic_export.plan.prices import SIDE_BY_SIDE_BYTES, side_by_side


def made(*names: str, side: int = 64) -> list[Candidate]:
    return [Candidate(name, (side, side), "BF16", 64, 2 * side**2) for name in names]


def test_every_matrix_is_in_one_group_with_neighbours_of_its_kind() -> None:
    names = [f"m.layers.{i}.{kind}.weight" for i in range(11) for kind in ("up", "down")]
    groups = alike(made(*names, "m.embed.weight", "head.weight"))
    assert sorted(m.name for group in groups for m in group) == sorted(
        [*names, "m.embed.weight", "head.weight"]
    )
    assert len(groups) == 2 + 2 * BANDS
    for group in groups:
        numbers = [int(m.name.split(".")[2]) for m in group if in_a_block(m)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        assert len({m.name.split(".")[-2] for m in group}) == 1


def test_kinds_are_in_the_order_of_their_numbers_not_of_their_letters() -> None:
    (*_, last) = alike(made(*(f"layers.{i}.up.weight" for i in (10, 2, 9, 0, 1, 11))))
    assert [m.name for m in last] == ["layers.10.up.weight", "layers.11.up.weight"]


def test_a_group_is_sampled_evenly() -> None:
    group = made(*(f"layers.{i}.up.weight" for i in range(12)))
    samples = samples_of(group)
    assert len(samples) == SAMPLES
    places = [group.index(m) for m in samples]
    assert places == sorted(places)
    assert sum(places) / len(places) == pytest.approx(6, abs=1)
    assert samples_of(group[:1]) == group[:1]


def test_factors_carry_measurements_to_all_bits() -> None:
    factors = PriceFactors(
        {
            2: GroupCost(expected=1.0, predicted=2.0, foreseen=0.5, divergence=6.0),
            3: GroupCost(expected=0.2, predicted=0.2, foreseen=0.4, divergence=0.3),
            4: GroupCost(expected=0.05, predicted=0.04, foreseen=0.05, divergence=None),
        }
    )
    assert factors.of_expected(2) == pytest.approx(6.0)
    assert factors.of_expected(3) == pytest.approx(1.5)
    assert factors.of_expected(4) == factors.of_expected(8) == pytest.approx(1.5 * 0.8)
    assert factors.of_predicted(2) == pytest.approx(3.0)
    assert factors.of_predicted(8) == factors.of_predicted(None) == pytest.approx(1.5)
    assert factors.of_foreseen(2) == pytest.approx(4.0)
    assert factors.of_foreseen(8) == pytest.approx(0.8)


def test_without_a_measurement_prices_stay() -> None:
    factors = PriceFactors({})
    assert factors.of_expected(2) == factors.of_predicted(None) == factors.of_foreseen(3) == 1.0


def test_what_float32_cannot_tell_from_nothing_has_no_factor() -> None:
    factors = PriceFactors({2: GroupCost(1e-12, 1e-12, 1e-12, 0.0)})
    assert factors.of_predicted(2) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_go_side_by_side_as_far_as_there_is_room(count: int) -> None:
    matrices = made(*(f"w{i}" for i in range(9)))
    runs = side_by_side(matrices, count)
    assert [m for run in runs for m in run] == matrices
    assert all(len(run) == count for run in runs[:-1])
    large = made("a", "b", side=int((SIDE_BY_SIDE_BYTES / 16) ** 0.5) + 64)
    assert [len(run) for run in side_by_side(large, count)] == [1, 1]
