"""The noise of a loss, measured from the losses themselves: what progress has to stand out from."""

import math
from collections.abc import Sequence
from statistics import median

LOSSES = 10
"""Latest losses that the noise is measured on: it changes with the learning rate."""
ERRORS = 2.0
"""Standard errors by which a loss must fall to have fallen (heuristic): a loss that is flat then
looks like one that falls once in forty times."""
LEAST = 1e-3
"""Relative fall that nobody would wait for, however smooth the losses are (heuristic)."""
_NORMAL = 1.4826  # standard deviation over median absolute value, of a normal distribution


def loss_noise(losses: Sequence[float]) -> float:
    r"""Return the standard deviation of a loss about the curve that the losses follow.

    The second differences :math:`l_t - 2 l_{t-1} + l_{t-2}` of a straight line are zero, and those
    of independent noise of deviation :math:`\sigma` have the deviation :math:`\sqrt 6 \, \sigma`.
    Their median absolute value is taken, so that the jump of a change of rank, which is in three of
    them, is no noise.

    Args:
        losses: Successive losses, measured on the same data.

    Returns:
        In the unit of the losses; 0.0 of fewer than three.

    Examples:
        >>> loss_noise([3.0, 2.0, 1.0, 0.0])
        0.0
    """
    bends = [abs(c - 2 * b + a) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    return _NORMAL * median(bends) / math.sqrt(6) if bends else 0.0


def least_progress(losses: Sequence[float], window: int, level: float) -> float:
    """Return the fall of a mean of losses that stands out from their noise.

    Args:
        losses: Successive losses; the last ``LOSSES`` count.
        window: Losses in each of the two means that are compared.
        level: The mean that is to fall.

    Examples:
        >>> least_progress([2.0, 2.0, 2.0], window=1, level=2.0)
        0.002
    """
    error = loss_noise(losses[-LOSSES:]) * math.sqrt(2 / window)
    return max(ERRORS * error, LEAST * abs(level))
