"""What a limit of memory makes of the size of requests that name none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_export.serving.memory_policy import MemoryPolicy

SIZES = (400, 600, 800)
amounts = st.integers(0, 3000)


@given(limit=st.integers(1, 3000), now=st.sampled_from(SIZES), needed=amounts)
def test_it_fits_or_is_the_least(limit: int, now: int, needed: int) -> None:
    policy = MemoryPolicy(limit)
    size = policy.size(SIZES, now=now, needed=needed)
    assert size == SIZES[0] or size + needed <= limit


@given(limit=st.integers(1, 3000), now=st.sampled_from(SIZES), needed=amounts)
def test_it_is_not_turned_to_and_fro(limit: int, now: int, needed: int) -> None:
    policy = MemoryPolicy(limit)
    size = policy.size(SIZES, now=now, needed=needed)
    assert policy.size(SIZES, now=size, needed=needed) == size


@given(limit=st.integers(1, 3000), now=st.sampled_from(SIZES), needed=amounts, more=amounts)
def test_more_need_makes_it_no_larger(limit: int, now: int, needed: int, more: int) -> None:
    policy = MemoryPolicy(limit)
    before = policy.size(SIZES, now=now, needed=needed)
    assert policy.size(SIZES, now=now, needed=needed + more) <= before


def test_it_goes_up_only_with_room_beyond() -> None:
    policy = MemoryPolicy(1000)  # room for 950, and 50 beyond to go up
    assert policy.size(SIZES, now=800, needed=150) == 800
    assert policy.size(SIZES, now=800, needed=151) == 600
    assert policy.size(SIZES, now=600, needed=101) == 600
    assert policy.size(SIZES, now=600, needed=100) == 800


def test_a_limit_below_the_least_size_names_it() -> None:
    MemoryPolicy(1000).check(950)
    with pytest.raises(ValueError, match="at least 1,002 bytes, the least size"):
        MemoryPolicy(1000).check(951)
    with pytest.raises(ValueError, match="got 999 bytes"):
        MemoryPolicy(999).check(950)
    MemoryPolicy(1002).check(951)
