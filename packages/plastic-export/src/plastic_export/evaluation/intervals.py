"""Confidence intervals of a mean over windows, or tokens, of text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import cos, exp, inf, isfinite, log, pi, sin, sqrt, tan
from sys import float_info

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95

MOST_FREEDOM = 10_000  # degrees beyond which t falls by less than 3e-4

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimated:
    """A mean, or what follows from one, with what is known of its error.

    Attributes:
        value: The estimate.
        error: Its standard error, None if there was one draw or ``value`` is not finite.
        interval: Its 95 % confidence interval, None where there is no error.

    Examples:
        >>> found = Estimated.of(np.array([1.0, 2.0, 3.0]))
        >>> found.value, round(found.error, 3), found.interval[0] < 1
        (2.0, 0.577, True)
    """

    value: float
    error: float | None = None
    interval: Interval | None = None

    @classmethod
    def of(cls, draws: NDArray[np.float64], *, least: float = -inf, most: float = inf) -> Estimated:
        """Return the mean of independent draws, its interval cut off at what is possible."""
        value, error = mean_and_error(draws)
        return cls(value, error, interval_within(value, error, len(draws), least, most))

    def exponential(self) -> Estimated:
        """Return ``e`` to the power of it; the error is to first order, the interval exact."""
        value = exp_or_inf(self.value)
        limits = self.interval and (exp_or_inf(self.interval[0]), exp_or_inf(self.interval[1]))
        return Estimated(value, None if self.error is None else value * self.error, limits)

    def root(self) -> Estimated:
        """Return its square root, likewise; that of 0 has no error."""
        value = sqrt(self.value)
        if not value or self.error is None or self.interval is None:
            return Estimated(value)
        low, high = self.interval
        return Estimated(value, self.error / (2 * value), (sqrt(max(low, 0)), sqrt(high)))


def mean_and_error(draws: NDArray[np.float64]) -> tuple[float, float | None]:
    """Return the mean of draws and its standard error, None if there is one or it is not finite."""
    mean = float(draws.mean())
    if len(draws) == 1 or not isfinite(mean):
        return mean, None
    return mean, float(draws.std(ddof=1)) / sqrt(len(draws))


def interval_within(
    mean: float | None,
    error: float | None,
    draws: int,
    least: float = -inf,
    most: float = inf,
) -> Interval | None:
    """Return `confidence_interval` cut off at two limits; None where there is no error."""
    if mean is None or error is None:
        return None
    low, high = confidence_interval(mean, error, draws)
    return max(low, least), min(high, most)


def exp_or_inf(x: float) -> float:
    """Return ``e`` to the power of ``x``, infinity where no double holds it."""
    return exp(x) if x <= log(float_info.max) else inf


def confidence_interval(mean: float, error: float, windows: int) -> Interval:
    """Return Student's 95 % confidence interval of a mean over windows, or other draws.

    A window's value is itself a mean over hundreds of tokens, hence nearly normal, so the
    interval of normal samples applies; it needs no seed. Of 4,000 draws of 24 among 120 windows
    of held-out text it held the mean of all in 94 to 95 % (KL, its paired differences, top-1
    agreement). The percentile bootstrap did in 92 %: for few samples it is too narrow (Hesterberg,
    What teachers should know about the bootstrap, The American Statistician 69(4), 2015).

    Windows count as independent draws: the interval is about more text of the same kind, and is
    a little too narrow where neighbouring windows resemble each other.

    Args:
        mean: The mean over the windows.
        error: Standard error of ``mean``.
        windows: How many there are, at least 2.

    Returns:
        Lower and upper limit.
    """
    half = t_quantile(min(windows - 1, MOST_FREEDOM)) * error
    return mean - half, mean + half


@cache
def t_quantile(freedom: int) -> float:
    """Return the t between -t and t of which Student's distribution has 95 % of its mass.

    Found by bisection, to the last bits of a double.

    Args:
        freedom: Degrees of freedom, at least 1.
    """
    low, high = 0.0, pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _mass(middle, freedom) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return sqrt(freedom) * tan(low)


def _mass(theta: float, freedom: int) -> float:
    """Return the mass within ``sqrt(freedom) tan(theta)`` (Abramowitz and Stegun 26.7.3 f.)."""
    odd = freedom % 2
    term = total = cos(theta) ** odd if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= (k - 1) / k * cos(theta) ** 2
        total += term
    return 2 / pi * (theta + sin(theta) * total) if odd else sin(theta) * total
