"""What machines take together: works whose schedule is known."""

from __future__ import annotations

import pytest
from plastic_export.estimate.parts import CalibrationPart
from plastic_export.estimate.processes import (
    FASTEST,
    FILLING,
    FOLDER,
    IN_A_ROW,
    REPEATED,
    SLOWEST,
    SUMS,
    UNEVEN,
    DealtWork,
    PlanWork,
    TriedWork,
    estimate_processes,
)
from plastic_export.estimate.speed import Speed, Work

SPEED = Speed(1.0, 1.0, 1.0, 1.0)
NOTHING = DealtWork([], [], [])
UNTRIED = TriedWork(0, Work(), [], Work(), 0, [])


def seconds(s: float) -> Work:
    return Work(products=s)


def plan(
    parts: int = 10,
    *,
    opening: float = 0.0,
    handed: int = 0,
    spooled: float = 0.0,
    priced: DealtWork = NOTHING,
    tried: TriedWork = UNTRIED,
) -> PlanWork:
    part = CalibrationPart(seconds(8.0), Work(), handed, spooled)
    return PlanWork(seconds(opening), [part] * parts, 8, priced, NOTHING, tried)


def test_a_process_alone_loses_nothing() -> None:
    found = estimate_processes(plan(opening=3), SPEED, processes=1, gigabits=SLOWEST, start=2.0)
    assert found.seconds == found.alone == 80 + 3 + 2
    assert found.faster == found.efficiency == 1
    assert set(found.losses.values()) == {0.0}
    assert found.machines[0].sends == 0


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_a_pipeline_loses_its_filling(processes: int) -> None:
    found = estimate_processes(plan(), SPEED, processes=processes, gigabits=FASTEST)
    longest = 8 / processes
    assert found.seconds == pytest.approx((10 + processes - 1) * longest)
    assert found.losses[FILLING] == pytest.approx((processes - 1) * longest)
    assert found.bottleneck == FILLING
    for machine in found.machines:
        assert machine.works == pytest.approx(10 * longest)
        assert machine.works + machine.waits == pytest.approx(found.seconds)


def test_sums_on_a_slow_network_are_what_is_waited_for() -> None:
    found = estimate_processes(plan(handed=125_000_000), SPEED, processes=4, gigabits=0.1)
    assert found.bottleneck == SUMS
    assert [m.sends for m in found.machines] == [0, *[10 * 125_000_000] * 3]


def test_process_0_has_the_folder_at_hand() -> None:
    found = estimate_processes(plan(spooled=8e9), SPEED, processes=2, gigabits=0.1)
    assert found.bottleneck == FOLDER
    first, second = found.machines
    assert second.works - first.works == pytest.approx(10 * 4e9 * 8e-8)


def test_what_each_does_by_itself_is_not_shared() -> None:
    found = estimate_processes(plan(opening=100), SPEED, processes=2, gigabits=FASTEST)
    assert found.losses[REPEATED] == 50
    assert found.bottleneck == REPEATED


def test_one_piece_is_shared_with_nobody() -> None:
    one = DealtWork([1.0], [seconds(100)], [0.0])
    found = estimate_processes(plan(priced=one), SPEED, processes=4, gigabits=FASTEST)
    assert found.phases["prices"] == 100
    assert found.losses[UNEVEN] == 75
    assert found.bottleneck == UNEVEN


def test_pieces_are_dealt_out_as_the_plan_deals_them_out() -> None:
    """The costliest hand: 5 and 3 are not together."""
    many = DealtWork([3.0, 5.0, 4.0], [seconds(3), seconds(5), seconds(4)], [1.0, 1.0, 1.0])
    found = estimate_processes(plan(0, priced=many), SPEED, processes=2, gigabits=FASTEST)
    assert found.seconds == pytest.approx(7, rel=1e-12)  # two bytes are read over the network


def test_blocks_of_a_trial_are_taken_in_turn_and_run_in_a_row() -> None:
    blocks = [seconds(4)] * 5
    tried = TriedWork(2, seconds(1), blocks, seconds(3), 0, [0.0] * 5)
    alone, two = (
        estimate_processes(plan(0, tried=tried), SPEED, processes=n, gigabits=FASTEST)
        for n in (1, 2)
    )
    assert alone.seconds == 2 * (1 + 5 * 4 + 3)
    assert two.seconds == 2 * (1 + 3 * 4 + 3)
    assert two.losses[IN_A_ROW] == 2 * 3 / 2
    assert two.losses[REPEATED] == 2 * 1 / 2


def test_more_processes_than_batches_are_refused_as_the_plan_would() -> None:
    with pytest.raises(ValueError, match=r"`processes` must be at most 8, .* got 9"):
        estimate_processes(plan(), SPEED, processes=9, gigabits=FASTEST)


@pytest.mark.parametrize("gigabits", [float("nan"), 0.0, 1e-300, 2 * FASTEST])
def test_a_network_that_is_none_is_refused(gigabits: float) -> None:
    with pytest.raises(ValueError, match=r"`gigabits` must be from 0\.001 to 100,000 Gbit/s"):
        estimate_processes(plan(), SPEED, processes=2, gigabits=gigabits)
