import json
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import Factors
from plastic_core.testing import bits, repeatable
from plastic_runtime.sleep.sleep_dict import Moments, SleepDict

OUT, INNER = 5, 4
DTYPES = {mx.float16: mx.uint16, mx.bfloat16: mx.uint16, mx.float32: mx.uint32}


def any_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """An array of arbitrary bit patterns: NaN payloads, infinities, subnormals, -0."""
    size = 2 ** (8 * dtype.size)
    return mx.array(rng.integers(0, size, shape), dtype=DTYPES[dtype]).view(dtype)


def components(k: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> Factors:
    rng = np.random.default_rng(seed)
    shapes = (OUT, k), (k,), (k, INNER)
    return Factors(*(any_bits(rng, shape, dtype) for shape in shapes))


def adam_moments(k: int, seed: int = 1, dtype: mx.Dtype = mx.float32) -> Moments:
    return {
        name: {leaf: array for leaf, array in zip("mv", pair, strict=True)}
        for name, *pair in zip(
            ("U", "S", "Vh"),
            components(k, seed, dtype),
            components(k, seed + 1, dtype),
            strict=True,
        )
    }


def same(one: mx.array | dict[str, Any], other: mx.array | dict[str, Any]) -> bool:
    if isinstance(one, dict) or isinstance(other, dict):
        assert isinstance(one, dict)
        assert isinstance(other, dict)
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    flat = bits(one.reshape(-1)) == bits(other.reshape(-1))
    return flat and one.dtype == other.dtype and one.shape == other.shape


@repeatable
@given(st.integers(1, 6), st.integers(0, 9), st.sampled_from(list(DTYPES)))
def test_what_is_parked_comes_back_with_the_same_bits(k: int, seed: int, dtype: mx.Dtype) -> None:
    factors, moments = components(k, seed, dtype), adam_moments(k, seed, dtype)
    store = SleepDict()
    ids = store.park("p", factors, moments)
    back, back_moments = store.take("p", ids)
    assert all(same(a, b) for a, b in zip(factors, back, strict=True))
    assert same(moments, back_moments)
    assert len(store) == 0


@repeatable
@given(st.permutations(range(4)))
def test_components_come_in_the_order_asked_for(order: list[int]) -> None:
    factors = components(4)
    store = SleepDict()
    store.park("other", components(2))
    ids = store.park("p", factors, adam_moments(4))
    back, moments = store.take("p", [ids[i] for i in order])
    picked = mx.array(list(order))
    assert bits(back.U) == bits(factors.U[:, picked])
    assert bits(moments["Vh"]["v"]) == bits(adam_moments(4)["Vh"]["v"][picked])


def test_an_id_is_never_given_twice() -> None:
    store = SleepDict()
    first = store.park("p", components(3))
    store.take("p", first)
    second = store.park("p", components(1))
    store = SleepDict.from_arrays(store.arrays(), store.meta())
    store.take("p", second)
    store = SleepDict.from_arrays(store.arrays(), store.meta())
    third = store.park("q", components(2))
    assert len({*first, *second, *third}) == 6


def test_taking_the_oldest_then_parking_loses_nobody() -> None:
    store = SleepDict()
    first = store.park("p", components(3))
    store.take("p", first[:1])
    added = store.park("p", components(1, seed=5))
    assert store.ids("p") == (*first[1:], *added)
    assert bits(store.get(added[0]).U) == bits(components(1, seed=5).U[:, 0])


def test_the_store_survives_a_safetensors_file(tmp_path: Path) -> None:
    store = SleepDict()
    store.park("layers.0", components(2, dtype=mx.bfloat16), adam_moments(2))
    store.park("layers.10", components(1))
    mx.save_safetensors(str(tmp_path / "s.safetensors"), store.arrays())
    arrays = cast(dict[str, mx.array], mx.load(str(tmp_path / "s.safetensors")))
    loaded = SleepDict.from_arrays(arrays, json.loads(json.dumps(store.meta())))
    assert same(loaded.arrays(), store.arrays())
    assert loaded.meta() == store.meta()
    assert loaded.ids("layers.0") == store.ids("layers.0")


def test_a_missing_array_is_named_and_changes_nothing() -> None:
    store = SleepDict()
    store.park("p", components(2))
    arrays = store.arrays()
    del arrays["1.Vh"]
    with pytest.raises(ValueError, match=r"'1\.Vh' of layer 'p'"):
        store.load(arrays, store.meta())
    assert len(store) == 2


def test_components_parked_without_moments_wake_with_zero_ones() -> None:
    store = SleepDict()
    ids = store.park("p", components(1)) + store.park("p", components(2), adam_moments(2))
    _, moments = store.read("p", ids)
    assert not moments["U"]["m"][:, 0].any()
    assert bits(moments["U"]["m"][:, 1:]) == bits(adam_moments(2)["U"]["m"])


@pytest.mark.parametrize("ids", [[], [0, 0], [2], [7]])
def test_wrong_ids_are_refused_and_nothing_is_taken(ids: list[int]) -> None:
    store = SleepDict()
    store.park("p", components(2))
    store.park("q", components(1))
    with pytest.raises(ValueError, match="got"):
        store.take("p", ids)
    assert len(store) == 3


def test_paths_are_those_with_somebody_asleep() -> None:
    store = SleepDict()
    store.park("b", components(1))
    store.park("a", components(1))
    assert store.paths() == ("a", "b")
    store.take("b", store.ids("b"))
    assert store.paths() == ("a",)


def test_bytes_asleep_are_those_that_were_awake() -> None:
    store = SleepDict()
    store.park("p", components(3, dtype=mx.bfloat16), adam_moments(3))
    assert store.nbytes == 3 * (OUT + 1 + INNER) * 2


def test_a_module_that_holds_a_store_gains_no_parameters() -> None:
    module = nn.Linear(2, 2)
    before = set(module.parameters())  # type: ignore[no-untyped-call]
    module.sleep_dict = SleepDict()
    module.sleep_dict.park("p", components(2))
    assert set(module.parameters()) == before  # type: ignore[no-untyped-call]
