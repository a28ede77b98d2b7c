"""Attention in NumPy against its definition in float64 and against MLX's own."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_core.linalg import on_cpu
from plastic_export.model.numpy_attention import use_numpy_attention

STOCK = mx.fast.scaled_dot_product_attention
MASKS = ["none", "causal", "boolean", "boolean of one head", "additive"]

pytestmark = pytest.mark.skipif(not on_cpu(), reason="on a GPU attention stays in MLX")


def attention(*arrays: NDArray[np.float32], **options: Any) -> NDArray[np.float32]:
    """Through the function that mlx-lm calls."""
    with use_numpy_attention():
        assert mx.fast.scaled_dot_product_attention is not STOCK
        y = mx.fast.scaled_dot_product_attention(*map(mx.array, arrays), **options)
    return np.asarray(y)


def definition(q: Any, k: Any, v: Any, scale: float, added: Any) -> NDArray[np.float64]:
    repeats = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), repeats, axis=1) for x in (k, v))
    weights = np.exp(scale * q @ k.swapaxes(-1, -2) + added)
    return weights / weights.sum(axis=-1, keepdims=True) @ v


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[NDArray[np.float32]], Any, NDArray[np.float64]]:
    """Queries, keys and values, a mask, and what it adds to the scores."""
    windows, groups, repeats, queries, past, dims, out = draw(
        st.tuples(*[st.integers(1, 4)] * 3, *[st.integers(1, 9)] * 4)
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    keys, heads = queries + past - 1, groups * repeats
    shapes = [
        (windows, heads, queries, dims),
        (windows, groups, keys, dims),
        (windows, groups, keys, out),
    ]
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    kind = draw(st.sampled_from(MASKS))
    shape = (windows, heads, queries, keys) if kind == "boolean" else (queries, keys)
    allowed = rng.random(shape) < 0.6
    allowed[..., 0] = True
    added = rng.standard_normal(shape, np.float32)
    return {
        "none": (arrays, None, np.zeros(())),
        "causal": (arrays, "causal", np.triu(np.full((queries, keys), -np.inf), past)),
        "boolean": (arrays, mx.array(allowed), np.where(allowed, 0, -np.inf)),
        "boolean of one head": (arrays, mx.array(allowed), np.where(allowed, 0, -np.inf)),
        "additive": (arrays, mx.array(added), added.astype(np.float64)),
    }[kind]


@given(problem=problems())
def test_attention_is_its_definition(problem: Any) -> None:
    (q, k, v), mask, added = problem
    exact = definition(q, k, v, 0.3, added)
    y = attention(q, k, v, scale=0.3, mask=mask)
    scores = 0.3 * np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max()
    eps = float(np.finfo(np.float32).eps)
    atol = eps * (q.shape[-1] * scores + k.shape[2] + 4) * float(np.abs(v).max())
    np.testing.assert_allclose(y, exact, rtol=0, atol=2 * atol)
    np.testing.assert_allclose(
        y, np.asarray(STOCK(*map(mx.array, (q, k, v)), scale=0.3, mask=mask)), rtol=0, atol=4 * atol
    )


def test_a_query_that_may_look_at_nothing_is_as_in_mlx() -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((1, 1, 3, 4), np.float32) for i in range(3))
    mask = mx.array(np.zeros((3, 3), np.bool_))
    stock = np.asarray(STOCK(*map(mx.array, (q, k, v)), scale=1.0, mask=mask))
    np.testing.assert_allclose(attention(q, k, v, scale=1.0, mask=mask), stock, rtol=1e-5)


def test_sinks_are_left_to_mlx() -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((1, 2, 3, 4), np.float32) for i in range(3))
    sinks = mx.array([0.5, -1.0])
    stock = np.asarray(STOCK(*map(mx.array, (q, k, v)), scale=1.0, sinks=sinks))
    np.testing.assert_array_equal(attention(q, k, v, scale=1.0, sinks=sinks), stock)


def test_the_type_is_that_of_the_queries() -> None:
    q = mx.ones((1, 1, 2, 4), mx.bfloat16)
    with use_numpy_attention():
        assert mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0).dtype == mx.bfloat16


def fail_inside() -> None:
    with use_numpy_attention():
        raise KeyboardInterrupt


def test_mlxs_own_attention_is_back_whatever_happens() -> None:
    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert mx.fast.scaled_dot_product_attention is STOCK
