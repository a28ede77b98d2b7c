"""Rows of processes whose end is known."""

from __future__ import annotations

import pytest
from plastic_export.estimate.pipeline import pipelined


def test_one_process_waits_for_nobody_and_sends_nothing() -> None:
    assert pipelined([[1.0, 2.0, 3.0]], [9.0, 9.0, 9.0]) == (6.0, (0.0,))


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_each_but_the_first_begins_one_part_later(processes: int) -> None:
    found = pipelined([[1.0] * 10] * processes, [0.0] * 10)
    assert found.seconds == 10 + processes - 1
    assert found.waits == (processes - 1.0,) * processes


def test_the_longest_part_is_waited_for_and_no_other() -> None:
    assert pipelined([[1.0, 5.0, 1.0]] * 2, [0.0] * 3).seconds == 1 + 5 + 5 + 1


def test_what_is_sent_keeps_both_busy() -> None:
    # The first: 2 of work, 1 of sending, three times. The last part goes on when it is there.
    assert pipelined([[2.0] * 3, [2.0] * 3], [1.0] * 3).seconds == 3 * 3 + 2


def test_in_the_middle_everything_is_taken_over_and_sent() -> None:
    two, three = (pipelined([[0.0] * 50] * n, [1.0] * 50).seconds for n in (2, 3))
    assert two == 50
    assert three == 2 * 50
