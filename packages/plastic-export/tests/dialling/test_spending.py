"""A budget is spent to the least cost, never over it, and refused beyond both ends."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_export.dialling.spending import Purse
from plastic_export.dialling.turning import Ranks, Turnable
from plastic_export.plan.budgets import Budget, Totals
from plastic_export.plan.offers import factor_bytes
from plastic_runtime.dialling import ComponentCurve, MatrixRecord

SHAPE = (64, 32)
BACKBONE = 640
SOURCE = 2 * 64 * 32
ONE = factor_bytes(SHAPE, 1, 4, "BF16")


def matrix(name: str, prices: list[float]) -> Turnable:
    """A matrix whose component k takes ``prices[k]`` off."""
    left = [sum(prices[k:]) for k in range(len(prices) + 1)]
    rank = len(prices)
    curve = ComponentCurve(tuple(range(rank + 1)), tuple(left), tuple(left), 0.1, 1.0)
    record = MatrixRecord(
        name, SHAPE, "BF16", SOURCE, BACKBONE + rank * ONE, 0.1, 0.1, 0.1,
        bits=2, group_size=32, rank=rank, factor_bits=4, factor_group_sizes=(64, 32), curve=curve,
    )  # fmt: skip
    return Turnable(record, curve.ranks)


def purse_of(matrices: list[Turnable], unturned: int = 1000) -> Purse:
    by_name = {m.record.name: m for m in matrices}

    def file_bytes(ranks: Ranks) -> int:
        """With headers of an odd length."""
        own = sum(m.offer(ranks[name], park=False).nbytes for name, m in by_name.items())
        return 8 * ((own + unturned + 5 * sum(rank > 0 for rank in ranks.values()) + 15) // 8)

    totals = Totals(len(matrices) * 64 * 32, len(matrices) * SOURCE, 0)
    return Purse(by_name, totals, unturned, file_bytes)


PRICES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4)


@given(st.lists(PRICES, min_size=1, max_size=3), st.floats(0, 1))
def test_no_other_ranks_within_a_budget_cost_less(prices: list[list[float]], share: float) -> None:
    matrices = [matrix(f"m{i}", p) for i, p in enumerate(prices)]
    purse = purse_of(matrices)
    least, most = (purse.file_bytes(ranks) for ranks in (purse.least(), purse.all()))
    allowed = least + int(share * (most - least))
    bits = Budget("bits_per_weight", 8 * (allowed - 16) / purse.totals.weights)
    found = purse.ranks_within(Budget("size", allowed))
    assert purse.file_bytes(found) <= allowed

    def cost(ranks: Ranks) -> float:
        return sum(m.offer(ranks[m.record.name], park=False).cost for m in matrices)

    def nbytes(ranks: Ranks) -> int:
        return 1000 + sum(m.offer(ranks[m.record.name], park=False).nbytes for m in matrices)

    names = [m.record.name for m in matrices]
    every = [dict(zip(names, r, strict=True)) for r in product(*(m.ranks for m in matrices))]
    if nbytes(purse.least()) <= bits.nbytes(purse.totals) <= nbytes(purse.all()):
        best = min(cost(r) for r in every if nbytes(r) <= bits.nbytes(purse.totals))
        assert cost(purse.ranks_within(bits)) == pytest.approx(best)


@pytest.mark.parametrize("kind", ["bits_per_weight", "size", "keep"])
def test_both_ends_are_named_and_can_be_typed(kind: str) -> None:
    purse = purse_of([matrix("a", [0.5, 0.2]), matrix("b", [0.4])])
    for value in (0.0001, 1e9, float("nan")):
        with pytest.raises(ValueError, match=f"`{kind}` must be at least .* and at most") as caught:
            purse.ranks_within(Budget(kind, value))  # type: ignore[arg-type]
    ends = re.findall(r"at (?:least|most) ([\d.,]*\d)", str(caught.value))
    least, most = (float(end.replace(",", "")) for end in ends)
    assert purse.ranks_within(Budget(kind, least)) == purse.least()  # type: ignore[arg-type]
    assert purse.ranks_within(Budget(kind, most)) == purse.all()  # type: ignore[arg-type]
