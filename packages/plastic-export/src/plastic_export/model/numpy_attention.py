"""Attention in NumPy, forwards and backwards, where MLX computes on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg
from plastic_core.linalg import on_cpu

F32 = NDArray[np.float32]
_LEAST = np.finfo(np.float32).min


@contextmanager
def use_numpy_attention() -> Iterator[None]:
    """Let ``mx.fast.scaled_dot_product_attention`` compute in NumPy inside the block.

    Only where MLX's default device is the CPU, and not where there are sinks. mlx's CPU wheel for
    Linux links reference BLAS, with which attention over windows of 256 tokens takes longer than
    all linear layers together.
    """
    original = mx.fast.scaled_dot_product_attention

    def attention(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
        if options.get("sinks") is not None:
            return original(q, k, v, **options)
        return attend(q, k, v, scale=options["scale"], mask=options.get("mask"))

    if not on_cpu():
        yield
        return
    mx.fast.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = original


def attend(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    r"""Attention ``softmax(scale q k^T + mask) v`` in float32, differentiable in q, k and v.

    Args:
        q: Queries, shape ``(batch, heads, length, size)``.
        k: Keys, shape ``(batch, groups, keys, size)``; ``groups`` divides ``heads``.
        v: Values, shape ``(batch, groups, keys, value size)``.
        scale: Factor of the products.
        mask: ``"causal"``: the last query sees all keys, the one before it all but the last, and
            so on. An array of what is added to the products, or true where a key is seen, that
            broadcasts to ``(batch, heads, length, keys)``; it has no gradient.

    Returns:
        Shape ``(batch, heads, length, value size)``, in the dtype of ``q``.

    Note:
        The probabilities, ``batch heads length keys`` numbers in float32, are held from the
        forward pass to the backward one.
    """
    kept: list[F32] = []

    @mx.custom_function
    def product(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        Q, K, V = _grouped(q, k.shape[1]), _numpy(k), _numpy(v)
        P = np.empty((*Q.shape[:3], k.shape[2]), np.float32)
        Y = np.empty((*Q.shape[:3], v.shape[3]), np.float32)
        hidden = _hidden(mask, q.shape[:3], P)

        def fill(at: tuple[int, ...]) -> None:
            np.matmul(Q[at], K[at].T, out=P[at])
            P[at] *= np.float32(scale)
            hidden(at)
            _softmax(P[at])
            np.matmul(P[at], V[at], out=Y[at])

        linalg.in_threads(fill, np.ndindex(P.shape[:2]))
        kept.append(P)
        return _like(Y, (*q.shape[:3], v.shape[3]), q)

    @product.vjp
    def backward(primals: Any, gradient: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        q, k, v = primals
        P, G = kept.pop(), _grouped(gradient, k.shape[1])
        Q, K, V = _grouped(q, k.shape[1]), _numpy(k), _numpy(v)
        dQ, dK, dV = (np.empty(X.shape, np.float32) for X in (Q, K, V))

        def fill(at: tuple[int, ...]) -> None:
            dS = G[at] @ V[at].T
            dS -= np.einsum("ij,ij->i", dS, P[at])[:, None]
            dS *= P[at]
            dS *= np.float32(scale)
            np.matmul(dS, K[at], out=dQ[at])
            np.matmul(dS.T, Q[at], out=dK[at])
            np.matmul(P[at].T, G[at], out=dV[at])

        linalg.in_threads(fill, np.ndindex(P.shape[:2]))
        return tuple(_like(d, x.shape, x) for d, x in zip((dQ, dK, dV), primals, strict=True))

    return cast(mx.array, product(q, k, v))


def _hidden(
    mask: mx.array | str | None, shape: tuple[int, ...], scores: F32
) -> Callable[[tuple[int, ...]], None]:
    """Return what lays the mask, in place, on the scores ``(heads length, keys)`` of one group.

    Like in MLX, what is not seen gets the least number, not infinity.

    Args:
        mask: See `attend`.
        shape: Batch, heads and length.
        scores: Of all groups, shape ``(batch, groups, heads length, keys)``.
    """
    (batch, heads, length), groups, keys = shape, scores.shape[1], scores.shape[-1]
    if mask is None:
        return lambda at: None
    if isinstance(mask, str):
        M = np.tri(length, keys, keys - length, dtype=bool)
    else:
        M = linalg.to_numpy(mask if mask.dtype == mx.bool_ else mask.astype(mx.float32))
    M = np.broadcast_to(M, (batch, heads, length, keys))
    M = M.reshape(batch, groups, heads // groups, length, keys)  # a view

    def lay(at: tuple[int, ...]) -> None:
        part = scores[at].reshape(-1, length, keys)
        if M.dtype == bool:
            np.copyto(part, _LEAST, where=~M[at])
        else:
            part += M[at]

    return lay


def _softmax(scores: F32) -> None:
    """Along the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)


def _grouped(x: mx.array, groups: int) -> F32:
    """Return the heads that share keys stacked below one another: one product for all of them."""
    batch, _, _, size = x.shape
    return _numpy(x).reshape(batch, groups, -1, size)


def _numpy(x: mx.array) -> F32:
    return cast(F32, linalg.to_numpy(x.astype(mx.float32)))


def _like(values: F32, shape: tuple[int, ...], x: mx.array) -> mx.array:
    return mx.array(values).reshape(shape).astype(x.dtype)
