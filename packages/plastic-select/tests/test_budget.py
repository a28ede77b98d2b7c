"""Ranks and parameters of one matrix."""

from hypothesis import given
from hypothesis import strategies as st
from plastic_select import (
    break_even_rank,
    budget_rank,
)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 0.99))
def test_the_budget_rank_is_the_largest_that_fits(m: int, n: int, target: float) -> None:
    rank, budget = budget_rank((m, n), target), (1 - target) * m * n
    rounding = 1e-12 * m * n
    assert 1 <= rank <= min(m, n)
    assert rank == 1 or (m + n) * rank <= budget + rounding
    assert (m + n) * (rank + 1) > budget - rounding


def test_budget_and_break_even_of_round_numbers() -> None:
    assert budget_rank((100, 100), 0.3) == 35
    assert budget_rank((3, 3), 0.9) == 1
    assert break_even_rank((100, 300)) == 75
    assert break_even_rank((1, 1)) == 1
