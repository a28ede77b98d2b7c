"""The trial of the machine, and what is made of it."""

from __future__ import annotations

import time

from plastic_export.estimate.speed import SLOW, Speed, Work, measured_speed


def test_a_trial_takes_no_second_and_is_made_once() -> None:
    measured_speed.cache_clear()
    started = time.process_time()
    first = measured_speed()
    assert time.process_time() - started < 4.0  # of CPU, of all threads of BLAS
    assert measured_speed() is first
    assert all(rate > 0 for rate in first)


def test_float64_is_no_quicker_than_twice_float32() -> None:
    speed = measured_speed(time.process_time)  # other work on the machine does not count
    assert speed.doubles < 2 * speed.products


def test_seconds_add_up() -> None:
    speed = Speed(2.0, 4.0, 8.0, 1.0)
    work = Work(products=2.0, doubles=8.0) + Work(entries=4.0, trained=3.0)
    assert work.seconds(speed) == 1.0 + 2.0 + 0.5 + 3.0
    assert work.times(3).seconds(speed) == 3 * work.seconds(speed)
    assert Work().seconds(SLOW) == 0
