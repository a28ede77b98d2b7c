"""What a spectrum offers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_select import Option, rank_options

EPS = float(np.finfo(np.float64).eps)


@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=30).map(lambda s: sorted(s, reverse=True)),
    st.integers(0, 8),
    st.integers(1, 5),
)
def test_ranks_are_the_multiples_between_floor_and_ceiling_at_half_the_dropped_energy(
    s: list[float], floor: int, multiple_of: int
) -> None:
    floor = min(floor, len(s))
    options = rank_options(
        s, bytes_per_component=24, base_bytes=7, floor=floor, multiple_of=multiple_of, dense=400
    )
    assert options[-1] == Option(400, 0.0, "dense")
    ranks = [r for r in range(len(s) + 1) if r >= floor and r % multiple_of == 0]
    assert [o.label for o in options[:-1]] == ranks
    for option in options[:-1]:
        assert option.nbytes == 7 + 24 * option.label
        half = math.fsum(x * x for x in s[option.label :]) / 2
        assert option.cost == pytest.approx(half, rel=len(s) * EPS)
    assert options[:-1] == [
        o for o in rank_options(s, bytes_per_component=24, base_bytes=7) if o.label in ranks
    ]


def test_impossible_ranks_are_refused() -> None:
    s = [3.0, 2.0, 1.0]
    with pytest.raises(ValueError, match=r"0 <= floor <= ceiling <= 3, .* got 2 and 1"):
        rank_options(s, bytes_per_component=8, floor=2, ceiling=1)
    with pytest.raises(ValueError, match=r"got 0 and 4"):
        rank_options(s, bytes_per_component=8, ceiling=4)
    for name in ("bytes_per_component", "multiple_of"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
            rank_options(s, **{"bytes_per_component": 8, name: 0})
    for name in ("base_bytes", "dense"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
            rank_options(s, **{"bytes_per_component": 8, name: -1})
    with pytest.raises(TypeError, match=r"`bytes_per_component` must be an integer, got 8\.5"):
        rank_options(s, bytes_per_component=8.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`multiple_of` = 64 has no multiple from 1 to 3"):
        rank_options(s, bytes_per_component=8, floor=1, multiple_of=64)
    only = rank_options(s, bytes_per_component=8, floor=1, multiple_of=64, dense=9)
    assert only == [Option(9, 0.0, "dense")]
    with pytest.raises(ValueError, match="their squares overflow"):
        rank_options([1e200], bytes_per_component=8)
