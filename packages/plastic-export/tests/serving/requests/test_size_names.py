"""Sizes as requests name them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_export.serving.requests.request_error import RequestError
from plastic_export.serving.requests.size_names import SizeNames

SIZES = SizeNames("out", ("/models/out",), least=6001, largest=9973)
LEAST = 0.6018  # 6001 / 9973 = 0.60172...


class Stop(NamedTuple):
    asked: int
    price: float


@pytest.mark.parametrize(
    ("model", "field", "keep"),
    [
        ("out", None, None),
        ("default_model", None, None),
        ("/models/out", None, None),
        ("out@0.75", None, 0.75),
        ("default_model@1", None, 1.0),
        ("/models/out@7.5e-1", None, 0.75),
        ("out", {"keep": 0.75}, 0.75),
        ("out", {"keep": 1}, 1.0),
        ("out@0.75", {"keep": 0.75}, 0.75),
        ("out@0.75009", None, 0.75),
        ("out", {"keep": LEAST}, LEAST),
    ],
)
def test_a_size_is_taken_from_the_name_or_the_field(
    model: str, field: Any, keep: float | None
) -> None:
    assert SIZES.asked(model, field) == keep


@pytest.mark.parametrize(
    ("model", "field", "said"),
    [
        ("out@", None, "must be a number such as 0.5"),
        ("out@small", None, 'got "small"'),
        ("out@nan", None, "from 0.6018, the least size, to 1, got nan"),
        ("out@1e999", None, "got inf"),
        ("out@1.0001", None, "to 1, got 1.0001"),
        ("out@-1", None, "got -1"),
        ("out", {"keep": 0.6017}, "got 0.6017"),
        ("out", {"keep": "0.7"}, '"keep" must be a number, got str'),
        ("out", {"keep": True}, '"keep" must be a number, got bool'),
        ("out", {"keep": None}, '"keep" must be a number, got NoneType'),
        ("out", {"kept": 0.7}, '"plastic" has no field "kept"'),
        ("out", {}, "must say how much is kept"),
        ("out", 0.7, '"plastic" must be an object such as {"keep": 0.5}'),
        ("out", [], '"plastic" must be an object'),
        ("out@0.7", {"keep": 0.8}, 'for the size 0.7, "plastic" for 0.8; give one of them'),
    ],
)
def test_what_is_no_size_is_refused_in_a_line(model: str, field: Any, said: str) -> None:
    with pytest.raises(RequestError) as refused:
        SIZES.asked(model, field)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.status == 400


def test_another_model_is_not_there() -> None:
    for name in ("other", "other@0.7", "@0.7", ""):
        with pytest.raises(RequestError, match='must be "out" or "out@SIZE"') as refused:
            SIZES.asked(name, None)
        assert refused.value.status == 404


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(RequestError, match="must be a number from"):
        SIZES.asked("out", {"keep": 10**400})


@given(least=st.integers(1, 10**9), more=st.integers(0, 10**9), part=st.floats(0, 1))
def test_a_listed_size_can_be_asked_for(least: int, more: int, part: float) -> None:
    sizes = SizeNames("m", (), least, least + more)
    stop = Stop(least + int(part * more), 1.0)
    (listed,) = sizes.listed([stop])
    assert sizes.asked(sizes.called(listed.keep), None) == listed.keep
    assert stop.asked <= listed.nbytes <= sizes.largest


def test_the_list_is_increasing_and_without_doubles() -> None:
    stops = [Stop(6001, 3.0), Stop(6001, 3.0), Stop(9000, 1.0), Stop(9973, 0.0)]
    listed = SIZES.listed(stops)
    assert [size.keep for size in listed] == [LEAST, 0.9025, 1.0]
    assert [size.price for size in listed] == [3.0, 1.0, 0]
