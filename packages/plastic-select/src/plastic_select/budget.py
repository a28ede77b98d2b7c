"""Ranks and parameters."""

from __future__ import annotations

import math

from plastic_select.check import as_shape, check_target


def budget_rank(shape: tuple[int, int], target_compression: float) -> int:
    r"""Return the largest rank whose factors fit the budget.

    Factors of rank r hold :math:`r (m + n)` parameters, so the rank is
    :math:`\lfloor (1 - \text{target}) m n / (m + n) \rfloor`, and at least 1.

    Args:
        shape: Shape ``(m, n)`` of the matrix.
        target_compression: Fraction of the ``m n`` dense parameters that is removed, in [0, 1).

    Returns:
        A rank from 1 to ``min(m, n)``. It is 1, over the budget, where not even one component
        fits.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> budget_rank((100, 100), 0.3)
        35
    """
    m, n = as_shape(shape)
    check_target(target_compression)
    return max(1, math.floor((1 - target_compression) * m * n / (m + n)))


def break_even_rank(shape: tuple[int, int]) -> int:
    """Return the largest rank, at least 1, whose factors are no larger than the dense matrix.

    Examples:
        >>> break_even_rank((100, 300))
        75
    """
    m, n = as_shape(shape)
    return max(1, m * n // (m + n))
