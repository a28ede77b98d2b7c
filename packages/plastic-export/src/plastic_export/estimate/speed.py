"""How fast this machine is at what commands spend their time on, from a trial of half a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from plastic_core.linalg import on_cpu

_TRIAL = 0.1  # seconds, of each of four
_SIDE, _ROWS = 1024, 256
Clock = Callable[[], float]
"""Tells seconds."""


class Work(NamedTuple):
    """Work of a command.

    Attributes:
        products: Multiplications of products in float32.
        doubles: The same in float64.
        entries: Entries that are gone over one by one, as in a softmax or a rounding.
        trained: Multiplications in float32 where only MLX itself will do, as in training.

    Examples:
        >>> Work(products=1e9) + Work(products=1e9, entries=5.0)
        Work(products=2000000000.0, doubles=0.0, entries=5.0, trained=0.0)
    """

    products: float = 0.0
    doubles: float = 0.0
    entries: float = 0.0
    trained: float = 0.0

    def __add__(self, other: object) -> Work:
        """Add each kind."""
        if not isinstance(other, Work):
            return NotImplemented
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> Work:
        """Return so many times the work."""
        return Work(*(factor * part for part in self))

    def seconds(self, speed: Speed) -> float:
        """Return how long it takes.

        Examples:
            >>> Work(products=2e9, entries=1e6).seconds(Speed(1e9, 1e9, 1e6, 1e9))
            3.0
        """
        return sum(part / rate for part, rate in zip(self, speed, strict=True))


class Speed(NamedTuple):
    """What a machine does in a second; the kinds are those of `Work`.

    Examples:
        >>> speed = measured_speed()
        >>> min(speed) > 0
        True
    """

    products: float
    doubles: float
    entries: float
    trained: float


SLOW = Speed(1e9, 5e8, 1e7, 1e9)
"""A machine that few are slower than: what it does at once needs no estimate."""


@cache
def measured_speed(clock: Clock = time.perf_counter) -> Speed:
    """Return the speed of this machine, measured once per process.

    Cost: half a second. With other work on the machine it is as much slower as that makes it.

    Args:
        clock: Tells seconds; ``time.process_time`` those of the processor, other work left out.
    """
    own = _own_products(clock)
    products = _rate(np.float32, clock) if on_cpu() else own
    return Speed(products, _rate(np.float64, clock), _entries(clock), own)


def _own_products(clock: Clock) -> float:
    """Products of MLX on its device: reference BLAS in its wheel for Linux."""
    x, W = mx.ones((_ROWS // 4, _SIDE)), mx.ones((_SIDE, _SIDE))
    return x.size * _SIDE / _seconds(lambda: mx.eval(x @ W), clock)


def _rate(dtype: type[np.floating], clock: Clock) -> float:
    x, W = np.ones((_ROWS, _SIDE), dtype), np.ones((_SIDE, _SIDE), dtype)
    return _ROWS * _SIDE**2 / _seconds(lambda: x @ W, clock)


def _entries(clock: Clock) -> float:
    x = np.zeros(_SIDE**2 // 4, np.float32)
    return x.size / _seconds(lambda: np.exp(x), clock)


def _seconds(work: Callable[[], object], clock: Clock) -> float:
    """Return the mean time of a piece of work, after a first time that does not count."""
    work()
    started, times = clock(), 0
    while (passed := clock() - started) < _TRIAL:
        work()
        times += 1
    return passed / times
