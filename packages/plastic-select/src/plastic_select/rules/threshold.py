"""The optimal hard threshold for singular values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from plastic_select.check import as_shape, as_spectrum, check_number
from plastic_select.rules.rule import Rule, Spectrum

POINTS = 1 << 14  # of the grid on which the median of the Marchenko-Pastur law is found


@dataclass(frozen=True)
class Threshold(Rule):
    """The number of singular values above white noise: see ``optimal_threshold_rank``.

    Singular values that are not known count as zero.

    Attributes:
        noise: Standard deviation of the noise in each entry, at least 0 and finite. None: it is
            estimated from the median of the spectrum.

    Examples:
        >>> from plastic_select import choose_rank_from_spectrum
        >>> s = [5.0, 4.0] + [1.0] * 8
        >>> choose_rank_from_spectrum(s, (10, 40), 0.0, Threshold()).rank
        2
        >>> choose_rank_from_spectrum(s, (10, 40), 0.0, Threshold(noise=0.4)).rank
        1
    """

    name = "threshold"
    noise: float | None = None

    def __post_init__(self) -> None:
        _check_noise(self.noise)

    def wanted(self, spectrum: Spectrum, shape: tuple[int, int], budget: int) -> tuple[int, str]:
        """Return the number of values above the threshold."""
        every = np.pad(spectrum, (0, min(shape) - spectrum.size))
        rank = optimal_threshold_rank(every, shape, noise=self.noise)
        return rank, f"{rank} singular values above the optimal hard threshold"


def optimal_threshold_rank(
    singular_values: ArrayLike, shape: tuple[int, int], *, noise: float | None = None
) -> int:
    r"""Count the singular values that stand above white noise.

    For a low-rank matrix observed in white noise, keeping the singular values above

    .. math::

        \tau = \lambda(\beta) \sqrt{\max(m, n)} \, \sigma, \qquad
        \lambda(\beta)^2 = 2 (\beta + 1) + \frac{8 \beta}{\beta + 1 + \sqrt{\beta^2 + 14 \beta + 1}}

    with :math:`\beta = \min(m, n) / \max(m, n)` has the least worst-case mean squared error of
    all hard thresholds, as the matrix grows. Where the noise level is not known,
    :math:`\tau = \lambda(\beta) / \sqrt{\mu_\beta}` times the median singular value, with
    :math:`\mu_\beta` the median of the Marchenko-Pastur law.

    A weight matrix is not a low-rank matrix in white noise, so this is a cap and not a target.

    Args:
        singular_values: The ``min(m, n)`` singular values, non-increasing.
        shape: Shape ``(m, n)`` of the matrix.
        noise: Standard deviation of the noise in each entry, or ``None`` to estimate it from the
            median.

    Returns:
        A rank from 0 (nothing but noise) to ``min(m, n)``.

    Raises:
        TypeError: If the values are not real numbers.
        ValueError: If they are not the spectrum of such a matrix, or ``noise`` is negative or not
            finite.

    Examples:
        >>> s = [5.0, 4.0] + [1.0] * 8  # two values above a floor of noise
        >>> optimal_threshold_rank(s, (10, 40)), optimal_threshold_rank(s, (10, 40), noise=0.4)
        (2, 1)

    References:
        Gavish and Donoho, *The optimal hard threshold for singular values is 4/sqrt(3)*, IEEE
        Trans. Inf. Theory 60(8), 2014, arXiv 1305.5870.
    """
    m, n = as_shape(shape)
    s = as_spectrum(singular_values, shape=(m, n))
    _check_noise(noise)
    beta = min(m, n) / max(m, n)
    if noise is None:
        tau = _known_noise(beta) / np.sqrt(_marchenko_pastur_median(beta)) * np.median(s)
    else:
        tau = _known_noise(beta) * np.sqrt(max(m, n)) * noise
    return int(np.count_nonzero(s > tau))


def _check_noise(noise: float | None) -> None:
    if noise is None:
        return
    check_number("noise", noise)
    if not 0 <= noise < np.inf:
        raise ValueError(f"`noise` must be a finite standard deviation of at least 0, got {noise}.")


def _known_noise(beta: float) -> float:
    root = np.sqrt(beta**2 + 14 * beta + 1)
    return float(np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root)))


def _marchenko_pastur_median(beta: float) -> float:
    # With t = 1 + beta - 2 sqrt(beta) cos(theta) the density is sin(theta)^2 / t, up to a factor.
    theta = (np.arange(POINTS) + 0.5) * (np.pi / POINTS)
    t = 1 + beta - 2 * np.sqrt(beta) * np.cos(theta)
    mass = np.square(np.sin(theta)) / t
    below = np.cumsum(mass) - mass / 2
    return float(np.interp(mass.sum() / 2, below, t))
