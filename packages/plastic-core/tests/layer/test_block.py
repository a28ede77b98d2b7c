"""PlasticBlock: a transformer block of which every matrix is a RankLayer."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from plastic_core.layer.block import PlasticBlock, random_layer
from plastic_core.layer.projection import projections
from plastic_core.layer.rank_layer import RankLayer
from plastic_core.testing import assert_orthonormal, bits, tolerance


def block(**options):
    return PlasticBlock(16, 4, 24, 3, **{"num_kv_heads": 2, "key": mx.random.key(1), **options})


def tokens(*shape, seed=0):
    return mx.random.normal(shape, key=mx.random.key(seed))


def with_dense_layers(plastic):
    """The same block on stock linear layers."""
    for part in (plastic.self_attn, plastic.mlp):
        for name, child in list(part.items()):
            if isinstance(child, RankLayer):
                part[name] = child.to_linear()
    return plastic


def test_the_block_computes_what_it_would_with_dense_layers():
    x = tokens(2, 5, 16)
    expected = np.array(with_dense_layers(block())(x))
    size = float(np.linalg.norm(expected))
    assert np.abs(np.array(block()(x)) - expected).max() <= tolerance(size, expected.shape)


def test_every_matrix_is_a_rank_layer_of_the_given_rank_or_its_own_limit():
    wide = block(num_kv_heads=1)
    layers = [m for m in wide.modules() if isinstance(m, RankLayer)]
    assert not any(isinstance(m, nn.Linear) for m in wide.modules())
    assert len(layers) == 7
    assert {layer.rank for layer in layers} == {3}
    narrow = PlasticBlock(16, 8, 24, 6, num_kv_heads=1)
    assert narrow.self_attn.k_proj.rank == narrow.self_attn.k_proj.max_rank == 2
    assert narrow.mlp.up_proj.rank == 6


def test_a_token_sees_the_past_only_unless_the_mask_is_lifted():
    layer, x = block(), tokens(1, 6, 16)
    changed = mx.concatenate([x[:, :4], tokens(1, 2, 16, seed=9)], axis=1)
    assert bits(layer(x)[:, :4]) == bits(layer(changed)[:, :4])
    assert bits(layer(x)[:, 4:]) != bits(layer(changed)[:, 4:])
    assert bits(layer(x, mask=None)[:, :4]) != bits(layer(changed, mask=None)[:, :4])


def test_attention_depends_on_positions():
    layer, x = block(), tokens(1, 6, 16)
    swapped = x[:, mx.array([1, 0, 2, 3, 4, 5])]
    assert bits(layer(x)[:, 5]) != bits(layer(swapped)[:, 5])


def test_one_key_makes_one_block_and_no_key_is_key_zero():
    def parameters(**options):
        return {name: bits(a) for name, a in tree_flatten(block(**options).parameters())}

    assert parameters(key=mx.random.key(5)) == parameters(key=mx.random.key(5))
    assert parameters(key=mx.random.key(5)) != parameters(key=mx.random.key(6))
    assert parameters(key=None) == parameters(key=mx.random.key(0))


def test_every_factor_of_the_block_gets_a_gradient():
    layer, x = block(), tokens(1, 5, 16)
    _, gradients = nn.value_and_grad(layer, lambda x: mx.sum(layer(x) ** 2))(x)
    silent = [name for name, g in tree_flatten(gradients) if not mx.any(g != 0).item()]
    assert silent == []


def test_a_stack_of_blocks_is_found_by_role():
    model = nn.Module()
    model.layers = [block(), block()]
    found = projections(model)
    assert [p.role for p in found] == ["q", "k", "v", "o", "gate", "up", "down"] * 2
    assert found[0].path == "layers.0.self_attn.q_proj"


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_a_random_layer_has_the_energy_of_a_stock_linear_layer(rank):
    layer = random_layer(20, 30, rank, key=mx.random.key(0))
    energy = float(np.sum(np.array(layer.S, np.float64) ** 2))
    assert_orthonormal(layer.U)
    assert_orthonormal(layer.Vh.T)
    assert abs(energy - (10.0 if rank else 0.0)) <= tolerance(10.0, (rank,))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PlasticBlock(18, 4, 24, 3), r"`dims` must be a multiple of 2 \* num_heads = 8"),
        (lambda: PlasticBlock(12, 4, 24, 3), "`dims`"),
        (lambda: block(num_kv_heads=3), "`num_kv_heads` must divide num_heads = 4, got 3"),
        (lambda: PlasticBlock(16, 4, 24, -1), "`rank` must not be negative, got -1"),
    ],
)
def test_a_wrong_size_is_named_with_its_limit(build, message):
    with pytest.raises(ValueError, match=message):
        build()
