"""One budget in bytes over all matrices."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plastic_select.allocation.hull import frontier
from plastic_select.allocation.options import Option
from plastic_select.allocation.relaxation import Descent
from plastic_select.allocation.search import finish
from plastic_select.allocation.table import as_table


@dataclass(frozen=True)
class Allocation:
    """One option for every matrix.

    Attributes:
        chosen: The position of the chosen option of every matrix among those it offers.
        nbytes: What they take together, at most ``budget``.
        cost: What they cost together.
        budget: The budget that was given, in bytes.
        lower_bound: The optimum of the linear relaxation, in which a matrix may mix two options:
            no choice within the budget costs less.
        multiplier: Cost per byte at the margin of the relaxation, at least 0: what one more byte
            would save; 0.0 where every matrix can have the option of least cost.
        optimal: Whether it is proven that, but for rounding, no choice within the budget costs
            less.

    Examples:
        >>> options = {"a": [Option(0, 5.0), Option(6, 0.0)], "b": [Option(0, 4.0), Option(5, 0.0)]}
        >>> (allocation,) = allocate(options, [5])
        >>> allocation.chosen, allocation.cost, round(allocation.lower_bound, 3)
        ({'a': 0, 'b': 1}, 5.0, 4.833)
        >>> round(allocation.gap, 3), allocation.optimal
        (0.034, True)
    """

    chosen: dict[str, int]
    nbytes: int
    cost: float
    budget: int
    lower_bound: float
    multiplier: float
    optimal: bool

    @property
    def gap(self) -> float:
        """The cost above ``lower_bound``, as a fraction of that; infinite above one of 0.0."""
        if self.cost == self.lower_bound:
            return 0.0
        return self.cost / self.lower_bound - 1 if self.lower_bound else math.inf


def allocate(
    options: Mapping[str, Sequence[Option]],
    budgets: Sequence[int],
    *,
    fixed: Mapping[str, int] | None = None,
) -> list[Allocation]:
    r"""Choose one option for every matrix within a budget, at the least total cost.

    With :math:`b_{ij}` bytes and :math:`c_{ij}` cost of option j of matrix i, for each budget B

    .. math::

        \min_j \sum_i c_{i j_i} \quad \text{with} \quad \sum_i b_{i j_i} \le B .

    The lower convex hulls of the matrices' options and one sort of their segments by slope solve
    the linear relaxation for every budget; dynamic programming around it finishes exactly, or
    stops after a fixed number of steps at the best choice found. It always finishes where there
    are at most 10,000 combinations, and nearly always with thousands of matrices.

    Args:
        options: What each matrix offers: at least one option, in any order, useless ones allowed.
        budgets: Total bytes, one integer per allocation wanted: ``[budget]`` for a single one.
        fixed: The position of the option that some matrices must have, by matrix.

    Returns:
        One allocation per budget, in that order, never over it. None depends on the other
        budgets, or on the order of matrices or options (but for which of two equal options is
        named); the same arguments give the same result. If both are proven optimal, a larger
        budget costs no more.

    Raises:
        TypeError: If a budget, bytes or a position are not integers, or a cost is not a number.
        ValueError: If there are no matrices, one has no options, bytes or a cost are negative,
            not finite or too large, a fixed choice does not exist, or a budget is below the
            least possible, which the message gives.

    Note:
        2,000 matrices with 64 options take about 0.3 s, and 0.1 s for each further budget (0.7 s
        where a proof fails).

    Examples:
        >>> offers = [Option(0, 5.0), Option(60, 1.0), Option(100, 0.0)]
        >>> roomy, tight = allocate({"a": offers, "b": offers}, [130, 110])
        >>> roomy.chosen, roomy.nbytes, roomy.cost, roomy.optimal
        ({'a': 1, 'b': 1}, 120, 2.0, True)
        >>> tight.nbytes, tight.cost, round(tight.lower_bound, 3)
        (100, 5.0, 3.333)

    References:
        Kellerer, Pferschy and Pisinger, *Knapsack Problems*, Springer 2004, chapter 11; papers
        for each step are named in ``hull.py``, ``relaxation.py`` and ``search.py``.
    """
    table = as_table(options, fixed or {})
    front = frontier(table.owner, table.nbytes, table.cost)
    descent = Descent(front)
    allocations = []
    for budget in _check_budgets(budgets, descent.least, len(table.names)):
        lp = descent.relax(budget - descent.least)
        best, optimal = finish(front, lp)
        positions = table.position[front.source[best]].tolist()
        by_name = dict(zip(table.names, positions, strict=True))
        chosen = {name: by_name[name] for name in options}
        nbytes, cost = int(front.nbytes[best].sum()), math.fsum(front.cost[best])
        bound = min(lp.bound, cost)
        allocations.append(Allocation(chosen, nbytes, cost, budget, bound, lp.price, optimal))
    return allocations


def _check_budgets(budgets: Any, least: int, count: int) -> list[int]:
    if np.ndim(budgets) != 1:
        raise TypeError(
            f"`budgets` must be a sequence of integers (bytes), got {budgets!r}. For a single "
            "one write [budget]."
        )
    checked = []
    for budget in budgets:
        try:
            checked.append(operator.index(budget))
        except TypeError:
            raise TypeError(
                f"`budgets` must hold integers (bytes), got {budget!r}. Round it down."
            ) from None
        if budget < least:
            raise ValueError(
                f"`budgets` must be at least {least} bytes, the least that {count} matrices with "
                f"these options can take, got {budget}. Raise it, or offer smaller options."
            )
    return checked
