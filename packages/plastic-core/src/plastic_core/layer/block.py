"""A transformer block whose linear layers are all ``RankLayer``."""

import mlx.core as mx
import mlx.nn as nn

from plastic_core.layer.module import Module
from plastic_core.layer.rank_layer import RankLayer

ROPE_BASE = 10_000.0
EPS = 1e-5


def random_layer(input_dims: int, output_dims: int, rank: int, *, key: mx.array) -> RankLayer:
    """Return a trainable ``RankLayer`` without backbone on random orthonormal directions.

    All components start with one weight, such that the squared Frobenius norm is ``output_dims /
    3``, the expectation at ``nn.Linear``'s initialisation: outputs start at the same scale.

    Args:
        input_dims: Size of the input.
        output_dims: Size of the output.
        rank: Rank of the layer, from 0; lowered to ``min(input_dims, output_dims)`` where greater.
        key: A key of ``mx.random.key``.
    """
    if rank < 0:
        raise ValueError(f"`rank` must not be negative, got {rank}.")
    rank = min(rank, input_dims, output_dims)
    layer = RankLayer(mx.zeros((output_dims, 0)), mx.zeros(0), mx.zeros((0, input_dims)))
    layer.grow(rank, key=key)
    weight = (output_dims / (3 * max(rank, 1))) ** 0.5
    layer.set_factors(layer.U, mx.full(rank, weight), layer.Vh)
    return layer


class PlasticBlock(Module):
    """Pre-norm attention and feed-forward, every matrix of changeable rank.

    ``h = x + self_attn(norm(x))``, ``y = h + mlp(norm(h))``: grouped-query attention with rotary
    positions, SwiGLU, RMS norms, no biases, with the names of mlx-lm's Llama.

    Args:
        dims: Width of the block; ``dims / num_heads`` must be even.
        num_heads: Number of query heads.
        hidden_dims: Width of the feed-forward layer.
        rank: Rank of every matrix to begin with, at most the matrix's smaller side.
        num_kv_heads: Number of key and value heads, a divisor of ``num_heads`` and by default that
            number.
        key: A key of ``mx.random.key``; by default ``mx.random.key(0)``.

    Raises:
        ValueError: If the sizes do not divide each other as stated, or ``rank`` is negative.

    Examples:
        >>> block = PlasticBlock(dims=16, num_heads=2, hidden_dims=32, rank=4)
        >>> block(mx.zeros((1, 5, 16))).shape, block.mlp.up_proj.rank
        ((1, 5, 16), 4)
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        hidden_dims: int,
        rank: int,
        *,
        num_kv_heads: int | None = None,
        key: mx.array | None = None,
    ) -> None:
        super().__init__()
        keys = mx.random.split(mx.random.key(0) if key is None else key)
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.self_attn = Attention(dims, num_heads, kv_heads, rank, key=keys[0])
        self.mlp = FeedForward(dims, hidden_dims, rank, key=keys[1])
        self.input_layernorm = nn.RMSNorm(dims, eps=EPS)
        self.post_attention_layernorm = nn.RMSNorm(dims, eps=EPS)

    def __call__(self, x: mx.array, mask: mx.array | str | None = "causal") -> mx.array:
        """Apply the block to ``x`` of shape ``(batch, tokens, dims)``.

        Args:
            x: Any floating dtype.
            mask: A mask of ``mx.fast.scaled_dot_product_attention``; ``None`` attends everywhere.
        """
        h = x + self.self_attn(self.input_layernorm(x), mask)
        y: mx.array = h + self.mlp(self.post_attention_layernorm(h))
        return y


class Attention(Module):
    """Grouped-query attention with rotary positions."""

    def __init__(
        self, dims: int, num_heads: int, num_kv_heads: int, rank: int, *, key: mx.array
    ) -> None:
        super().__init__()
        if dims % (2 * num_heads):
            raise ValueError(
                f"`dims` must be a multiple of 2 * num_heads = {2 * num_heads}, got {dims}."
            )
        if num_heads % num_kv_heads:
            raise ValueError(
                f"`num_kv_heads` must divide num_heads = {num_heads}, got {num_kv_heads}."
            )
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        head_dims = dims // num_heads
        kv_dims = num_kv_heads * head_dims
        q, k, v, o = mx.random.split(key, 4)
        self.q_proj = random_layer(dims, dims, rank, key=q)
        self.k_proj = random_layer(dims, kv_dims, rank, key=k)
        self.v_proj = random_layer(dims, kv_dims, rank, key=v)
        self.o_proj = random_layer(dims, dims, rank, key=o)
        self.rope = nn.RoPE(head_dims, base=ROPE_BASE)

    def __call__(self, x: mx.array, mask: mx.array | str | None) -> mx.array:
        """Attend within ``x`` of shape ``(batch, tokens, dims)``."""
        q = self.rope(_heads(self.q_proj(x), self.num_heads))
        k = self.rope(_heads(self.k_proj(x), self.num_kv_heads))
        v = _heads(self.v_proj(x), self.num_kv_heads)
        scale = q.shape[-1] ** -0.5
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return self.o_proj(y.swapaxes(1, 2).flatten(-2))


class FeedForward(Module):
    """The SwiGLU layer ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, dims: int, hidden_dims: int, rank: int, *, key: mx.array) -> None:
        super().__init__()
        gate, up, down = mx.random.split(key, 3)
        self.gate_proj = random_layer(dims, hidden_dims, rank, key=gate)
        self.up_proj = random_layer(dims, hidden_dims, rank, key=up)
        self.down_proj = random_layer(hidden_dims, dims, rank, key=down)

    def __call__(self, x: mx.array) -> mx.array:
        """Transform the last axis of ``x``."""
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


def _heads(x: mx.array, num_heads: int) -> mx.array:
    """Turn ``(batch, tokens, heads * d)`` into ``(batch, heads, tokens, d)``."""
    return mx.unflatten(x, -1, (num_heads, -1)).swapaxes(1, 2)
