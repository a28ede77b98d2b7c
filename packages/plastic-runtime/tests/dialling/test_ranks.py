"""Plans: never over the budget, dense where factors would be as large, nothing read or written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plastic_core.files import ITEM_BYTES
from plastic_runtime.dialling.ranks import Surveyed, plan_ranks
from plastic_select import STRATEGIES

quick = settings(deadline=None, derandomize=True)
sides = st.integers(4, 40)


@st.composite
def surveys(draw: st.DrawFn) -> list[Surveyed]:
    """Several matrices of drawn shapes and spectra, some of them stored packed."""
    result = []
    for i in range(draw(st.integers(1, 4))):
        out, in_ = draw(sides), draw(sides)
        dtype = draw(st.sampled_from(["BF16", "F32"]))
        dense = out * in_ * ITEM_BYTES[dtype]
        packed = draw(st.booleans())
        decay = draw(st.floats(0.0, 2.0))
        spectrum = np.arange(1.0, min(out, in_) + 1) ** -decay
        result.append(
            Surveyed(f"m{i}", (out, in_), dtype, dense // 2 if packed else dense, spectrum)
        )
    return result


def least(matrices: list[Surveyed]) -> float:
    return max(m.component_bytes / m.source_bytes for m in matrices)


@quick
@given(surveys(), st.floats(0.05, 1.0), st.sampled_from(STRATEGIES))
def test_a_plan_never_exceeds_its_bytes(
    matrices: list[Surveyed], keep: float, strategy: str
) -> None:
    if least(matrices) > keep:
        return
    plan = plan_ranks(matrices, keep, strategy)
    assert plan.awake_bytes <= keep * plan.source_bytes
    assert [p.name for p in plan.matrices] == [m.name for m in matrices]
    for p in plan.matrices:
        assert 1 <= p.rank <= min(p.shape)
        assert p.choice == "dense" or p.awake_bytes <= p.source_bytes
        assert p.parked == (0 if p.choice == "dense" else min(p.shape) - p.rank)


@quick
@given(surveys(), st.sampled_from(["stable", "energy", "activation"]))
def test_keeping_everything_touches_nothing(matrices: list[Surveyed], strategy: str) -> None:
    if least(matrices) > 1:
        return
    plan = plan_ranks(matrices, 1.0, strategy)
    assert {p.choice for p in plan.matrices} == {"dense"}
    assert plan.kept == 1.0


def test_a_larger_budget_never_keeps_fewer_bytes() -> None:
    s = np.arange(1.0, 65.0) ** -0.7
    matrices = [Surveyed(f"m{i}", (64, 96), "BF16", 2 * 64 * 96, s ** (i + 1)) for i in range(3)]
    for strategy in ("stable", "energy", "activation"):
        awake = [plan_ranks(matrices, k, strategy).awake_bytes for k in (0.2, 0.4, 0.6, 0.8, 1.0)]
        assert awake == sorted(awake)
        assert awake[0] > 0.15 * 3 * 2 * 64 * 96  # and nearly all of the budget is spent


def test_a_matrix_at_its_break_even_stays_dense() -> None:
    flat, steep = np.ones(64), np.arange(1.0, 65.0) ** -2.0
    matrices = [
        Surveyed(n, (64, 97), "BF16", 2 * 64 * 97, s) for n, s in (("f", flat), ("s", steep))
    ]
    for keep in (0.6, 0.7, 0.8, 0.9):
        plan = plan_ranks(matrices, keep, "stable")
        assert plan.kept <= keep
        assert [p.choice for p in plan.matrices] == ["dense", "factored"]


def test_the_budget_that_cannot_hold_rank_one_names_the_least() -> None:
    matrix = Surveyed("m", (8, 8), "F32", 256, np.ones(8))
    with pytest.raises(ValueError, match=r"at least 0\.2500, for rank 1"):
        plan_ranks([matrix], 0.2, "energy")
    assert plan_ranks([matrix], 0.25, "energy").matrices[0].rank == 1


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.001, float("nan")])
def test_keep_is_a_fraction(keep: float) -> None:
    with pytest.raises(ValueError, match=r"`keep` must be in \(0, 1\]"):
        plan_ranks([Surveyed("m", (8, 8), "F32", 256, np.ones(8))], keep, "energy")
