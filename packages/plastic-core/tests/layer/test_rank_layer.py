"""RankLayer: what it computes, and what a change of rank may and may not change."""

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from plastic_core.factors import as_arrays, right_map
from plastic_core.factors.lowrank import Factors
from plastic_core.layer.rank_layer import RankLayer
from plastic_core.testing import (
    assert_orthonormal,
    bits,
    matrix_from_spectrum,
    repeatable,
    spectra,
    tolerance,
)

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def gaussian(*shape, seed=0):
    return mx.random.normal(shape, key=mx.random.key(seed))


def linear(out, inner, *, bias=True, dtype=mx.float32, seed=0):
    layer = nn.Linear(inner, out, bias=bias)
    layer.weight = gaussian(out, inner, seed=seed).astype(dtype)
    if bias:
        layer.bias = gaussian(out, seed=seed + 1).astype(dtype)
    return layer


def rank_layer(out=12, inner=9, rank=4, *, seed=0, **options):
    factors = (gaussian(out, rank, seed=seed), gaussian(rank, seed=seed + 1))
    return RankLayer(*factors, gaussian(rank, inner, seed=seed + 2), **options)


def dense(layer):
    """The weight of the plastic part in float64."""
    U, S, Vh = (np.array(a.astype(mx.float32), np.float64) for a in layer.factors())
    return (U * S) @ Vh


def assert_close(actual, expected, slack=1.0):
    expected = np.asarray(expected, np.float64)
    difference = np.abs(np.asarray(actual, np.float64) - expected).max(initial=0.0)
    norms = np.linalg.norm(expected.reshape(-1, expected.shape[-1]), 2) if expected.size else 0.0
    assert difference <= slack * tolerance(float(norms), expected.shape)


@repeatable
@given(
    out=st.integers(1, 12),
    inner=st.integers(1, 12),
    data=st.data(),
    leading=st.sampled_from([(), (3,), (2, 3), (0, 4)]),
    base=st.booleans(),
    bias=st.booleans(),
)
def test_the_layer_computes_its_weight_times_the_input(out, inner, data, leading, base, bias):
    rank = data.draw(st.integers(0, min(out, inner)))
    backbone = linear(out, inner, bias=bias) if base else None
    own_bias = gaussian(out, seed=7) if bias and not base else None
    layer = rank_layer(out, inner, rank, base=backbone, bias=own_bias)
    x = gaussian(*leading, inner, seed=9)
    W = dense(layer) + (np.array(backbone.weight, np.float64) if base else 0.0)
    b = np.array(backbone.bias if base else own_bias) if bias else 0.0
    size = np.linalg.norm(np.array(x)) * np.linalg.norm(W) + np.linalg.norm(b)
    difference = np.abs(np.array(layer(x)) - (np.array(x, np.float64) @ W.T + b))
    assert layer(x).shape == (*leading, out)
    assert difference.max(initial=0.0) <= tolerance(float(size), W.shape)


def test_a_quantised_backbone_is_added_as_its_own_module_computes_it():
    backbone = nn.QuantizedLinear.from_linear(linear(8, 32), 32, 4)
    layer = rank_layer(8, 32, 0, base=backbone)
    x = gaussian(5, 32)
    assert bits(layer(x)) == bits(backbone(x))


@pytest.mark.parametrize("keep_base", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("x_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_output_has_the_dtype_that_linear_gives(dtype, x_dtype, bias, keep_base):
    stock = linear(6, 5, bias=bias, dtype=dtype)
    x = gaussian(2, 5).astype(x_dtype)
    layer = RankLayer.from_linear(stock, 3, keep_base=keep_base)
    assert layer(x).dtype == stock(x).dtype
    assert {a.dtype for a in layer.factors()} == {dtype}


def test_float32_factors_over_a_bfloat16_backbone_keep_the_dtype_of_the_backbone():
    layer = rank_layer(6, 5, 2, base=linear(6, 5, dtype=mx.bfloat16))
    assert layer(gaussian(3, 5).astype(mx.bfloat16)).dtype == mx.bfloat16


@repeatable
@given(s=spectra(), extra=st.integers(0, 5), wide=st.booleans(), data=st.data())
def test_replacing_loses_exactly_the_tail_of_the_spectrum(s, extra, wide, data):
    rank = data.draw(st.integers(0, len(s)))
    shape = (len(s), len(s) + extra) if wide else (len(s) + extra, len(s))
    W = matrix_from_spectrum(s, *shape, seed=3)
    stock = linear(*shape)
    stock.weight = mx.array(W, dtype=mx.float32)
    layer = RankLayer.from_linear(stock, rank)
    tail = np.sqrt(np.sum(s[rank:] ** 2))
    assert abs(np.linalg.norm(W - dense(layer)) - tail) <= tolerance(s, shape)
    assert bits(layer.bias) == bits(stock.bias)


def test_replacing_under_a_gram_is_optimal_for_the_outputs_and_plain_truncation_is_not():
    stock = linear(10, 8, seed=5)
    W = np.array(stock.weight, np.float64)
    root = matrix_from_spectrum(2.0 ** -np.arange(8), 8, 8, seed=1)
    tail = np.sqrt(np.sum(np.linalg.svd(W @ root, compute_uv=False)[3:] ** 2))
    weighted = RankLayer.from_linear(stock, 3, gram=root @ root.T)
    plain = RankLayer.from_linear(stock, 3)
    errors = [np.linalg.norm((W - dense(layer)) @ root) for layer in (weighted, plain)]
    assert abs(errors[0] - tail) <= tolerance(W @ root, W.shape)
    assert errors[1] > 1.05 * tail
    assert weighted.rank == 3


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8"])
def test_a_quantised_layer_is_replaced_by_its_dequantised_weight(mode):
    packed = linear(8, 32).to_quantized(32, 8 if mode == "mxfp8" else 4, mode)
    layer = RankLayer.from_linear(packed, 8)
    W = mx.dequantize(
        packed.weight,
        packed.scales,
        packed.get("biases"),
        group_size=32,
        bits=packed.bits,
        mode=mode,
    )
    eps = float(mx.finfo(W.dtype).eps)
    error = np.linalg.norm(dense(layer) - np.array(W.astype(mx.float32)))
    assert layer.U.dtype == W.dtype
    assert error <= 10 * eps * np.linalg.norm(dense(layer))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_plastic_part_on_a_kept_backbone_changes_no_bit(dtype, packed):
    stock = linear(24, 32, dtype=dtype)
    stock = stock.to_quantized(32, 4) if packed else stock
    x = gaussian(3, 32).astype(dtype)
    before = bits(stock(x))
    layer = RankLayer.from_linear(stock, 5, keep_base=True, key=mx.random.key(3))
    assert layer.rank == 5
    assert bits(layer(x)) == before


@repeatable
@given(
    out=st.integers(1, 12),
    inner=st.integers(1, 12),
    data=st.data(),
    degenerate=st.booleans(),
)
def test_growth_changes_no_output_and_adds_orthonormal_directions_beyond_the_present_ones(
    out, inner, data, degenerate
):
    rank = data.draw(st.integers(0, min(out, inner)))
    k = data.draw(st.integers(0, min(out, inner) - rank))
    layer = rank_layer(out, inner, rank)
    if degenerate:
        layer.set_factors(mx.ones_like(layer.U), layer.S, layer.Vh)
    x = gaussian(3, inner, seed=4)
    before, old = np.array(layer(x)), layer.factors()
    layer.grow(k, key=mx.random.key(2))
    assert_close(np.array(layer(x)), before)
    assert [bits(a) for a in (layer.U[:, :rank], layer.S[:rank], layer.Vh[:rank])] == [
        bits(a) for a in old
    ]
    assert not mx.any(layer.S[rank:]).item()
    for present, new in ((old.U, layer.U[:, rank:]), (old.Vh.T, layer.Vh[rank:].T)):
        assert_orthonormal(new)
        overlap = np.array(present).T @ np.array(new)
        norm = float(np.linalg.norm(np.array(present)))
        assert np.abs(overlap).max(initial=0.0) <= tolerance(norm, new.shape)


def test_growing_twice_with_one_key_still_finds_new_directions():
    layer = RankLayer.from_linear(linear(8, 8), 0)
    for _ in range(4):
        layer.grow(2, key=mx.random.key(0))
    assert_orthonormal(layer.U)
    assert_orthonormal(layer.Vh.T)


def test_the_same_key_grows_the_same_directions_and_another_key_others():
    layers = [rank_layer() for _ in range(3)]
    for layer, seed in zip(layers, (1, 1, 2), strict=True):
        layer.grow(2, key=mx.random.key(seed))
    assert bits(layers[0].U) == bits(layers[1].U) != bits(layers[2].U)


def test_a_layer_can_grow_to_full_rank_and_not_beyond():
    layer = rank_layer(7, 5, 3)
    layer.grow(2, key=mx.random.key(0))
    assert layer.rank == layer.max_rank == 5
    with pytest.raises(ValueError, match=r"`k` must be between 0 and max_rank - rank = 0 .* got 1"):
        layer.grow(1, key=mx.random.key(0))


@repeatable
@given(rank=st.integers(0, 9), data=st.data(), dtype=st.sampled_from(FLOATS))
def test_parking_and_waking_move_components_without_changing_a_bit(rank, data, dtype):
    layer = rank_layer(12, 9, rank)
    layer.set_factors(*(a.astype(dtype) for a in layer.factors()))
    before = layer.factors()
    keep = data.draw(
        st.permutations(range(rank)).flatmap(lambda p: st.integers(0, rank).map(lambda n: p[:n]))
    )
    others = sorted(set(range(rank)) - set(keep))
    order = [*keep, *others]
    if data.draw(st.booleans()):
        parked = layer.keep(keep)
        assert (layer.rank, parked.rank) == (len(keep), rank - len(keep))
    else:
        parked = layer.park(keep)
        assert (layer.rank, parked.rank) == (rank - len(keep), len(keep))
        order = [*others, *keep]
    layer.wake(parked)
    for column, i in enumerate(order):
        assert bits(layer.U[:, column]) == bits(before.U[:, i])
        assert bits(layer.S[column : column + 1]) == bits(before.S[i : i + 1])
        assert bits(layer.Vh[column]) == bits(before.Vh[i])


@repeatable
@given(
    values=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=8),
    tau=st.floats(0, 3, width=32),
)
def test_soft_thresholding_shortens_every_weight_by_tau_and_drops_those_within_it(values, tau):
    layer = rank_layer(10, 10, len(values))
    layer.set_factors(layer.U, mx.array(values), layer.Vh)
    keep, new = layer.soft_threshold(tau)
    kept = np.array(values)[keep]
    assert keep == [i for i, s in enumerate(values) if abs(s) > tau]
    assert np.allclose(np.abs(kept) - np.abs(np.array(new)), tau, rtol=0, atol=tolerance(4.0, (1,)))
    assert np.all(np.sign(kept) * np.array(new) >= 0)
    assert bits(layer.S) == bits(mx.array(values))


@repeatable
@given(rank=st.integers(0, 8), data=st.data())
def test_the_truncation_error_is_the_distance_to_what_remains(rank, data):
    layer = rank_layer(10, 8, rank, seed=3)
    parked = data.draw(st.lists(st.integers(0, rank - 1), unique=True)) if rank else []
    before, error = dense(layer), layer.truncation_error(parked)
    layer.park(parked)
    expected = np.linalg.norm(before - dense(layer))
    assert abs(error - expected) <= tolerance(before, before.shape)


@repeatable
@given(s=spectra(max_size=8), extra=st.integers(0, 4), twist=st.booleans())
def test_balancing_finds_the_spectrum_and_leaves_the_weight(s, extra, twist):
    m, n, r = len(s) + extra, len(s) + 1, len(s)
    W = matrix_from_spectrum(s, m, n, seed=4)
    mix = matrix_from_spectrum(np.linspace(1, 3, r), r, r, seed=5) if twist else np.eye(r)
    P, _, Qh = np.linalg.svd(W, full_matrices=False)
    U, Vh = P[:, :r] * s @ mix, np.linalg.inv(mix) @ Qh[:r]
    layer = RankLayer(*(mx.array(a, dtype=mx.float32) for a in (U, np.ones(r), Vh)))
    factors = layer.balanced()
    assert_close(np.array(factors.S), s, slack=10)
    assert np.abs(np.array(factors.dense()) - W).max() <= 10 * tolerance(s, W.shape)
    assert_orthonormal(factors.U)
    assert_orthonormal(factors.Vh.T)
    assert bits(layer.U) == bits(mx.array(U, dtype=mx.float32))


def maps(old, new):
    """The matrices with ``U_new = U @ left`` and ``Vh_new = right @ Vh``, by least squares."""
    (U, _, Vh), (new_U, _, new_Vh) = as_arrays(old), as_arrays(new)
    return right_map(U, new_U), right_map(Vh.T, new_Vh.T).T


@pytest.mark.parametrize("rank", [0, 1, 4, 9])
def test_balancing_maps_the_old_factors_onto_the_new_ones(rank):
    layer = rank_layer(12, 9, rank)
    factors = layer.balanced()
    left, right = maps(layer.factors(), factors)
    assert left.shape == right.shape == (rank, rank)
    for old, new, image in (
        (layer.U, factors.U, np.array(layer.U) @ np.array(left)),
        (layer.Vh, factors.Vh, np.array(right) @ np.array(layer.Vh)),
    ):
        condition = float(np.linalg.cond(np.array(old))) if rank else 1.0
        assert np.abs(image - np.array(new)).max(initial=0.0) <= tolerance(condition, old.shape)


def test_balancing_survives_dependent_directions():
    layer = rank_layer(6, 5, 3)
    layer.set_factors(mx.concatenate([layer.U[:, :2], layer.U[:, :1]], axis=1), layer.S, layer.Vh)
    factors = layer.balanced()
    left, _ = maps(layer.factors(), factors)
    assert_close(np.array(factors.dense()), dense(layer))
    assert_orthonormal(factors.U)
    assert np.isfinite(np.array(left)).all()


class Model(nn.Module):
    """One layer in a list, as in a transformer."""

    def __init__(self, layer):
        super().__init__()
        self.layers = [{"proj": layer}]

    def __call__(self, x):
        return self.layers[0]["proj"](x)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "thaw",
    [
        lambda model: model.unfreeze(),
        lambda model: model.freeze().unfreeze(),
        lambda model: model.unfreeze(keys=["base", "weight", "U", "S", "Vh"]),
        lambda model: copy.deepcopy(model).unfreeze(),
    ],
)
def test_no_unfreezing_makes_the_backbone_trainable(packed, thaw):
    base = linear(8, 32).to_quantized(32, 4) if packed else linear(8, 32)
    model = thaw(Model(rank_layer(8, 32, 2, base=base)))
    names = {
        name.removeprefix("layers.0.proj.")
        for name, _ in tree_flatten(model.trainable_parameters())
    }
    assert names == {"U", "S", "Vh"}
    assert "layers.0.proj.base.weight" in dict(tree_flatten(model.parameters()))


def test_freezing_one_factor_lasts_through_a_change_of_rank():
    layer = rank_layer(bias=mx.zeros(12))
    layer.freeze(keys="Vh")
    layer.grow(2, key=mx.random.key(0))
    assert set(layer.trainable_parameters()) == {"U", "S", "bias"}


def test_gradients_reach_the_factors_and_not_the_backbone():
    model = Model(rank_layer(8, 5, 2, base=linear(8, 5)))
    x = gaussian(3, 5)
    loss_and_grad = nn.value_and_grad(model, lambda x: mx.sum(model(x) ** 2))
    _, gradients = loss_and_grad(x)
    names = {name for name, g in tree_flatten(gradients) if mx.any(g != 0).item()}
    assert names == {f"layers.0.proj.{name}" for name in ("U", "S", "Vh")}


@pytest.mark.parametrize("base_bias", [False, True])
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("method", ["to_linear", "fuse"])
def test_the_dense_layer_computes_the_same(method, base, base_bias):
    backbone = linear(8, 6, bias=base_bias) if base else None
    bias = gaussian(8, seed=6) if not base else None
    layer = rank_layer(8, 6, 3, base=backbone, bias=bias)
    stock = getattr(layer, method)()
    x = gaussian(4, 6, seed=1)
    assert type(stock) is nn.Linear
    assert_close(np.array(stock(x)), np.array(layer(x)), slack=4)


def test_the_dense_layer_of_a_quantised_backbone_keeps_the_plastic_part():
    layer = rank_layer(8, 32, 3, base=linear(8, 32).to_quantized(32, 4))
    stock = layer.fuse(dequantize=False)
    x = gaussian(4, 32, seed=1)
    assert type(stock) is nn.Linear
    assert_close(np.array(stock(x)), np.array(layer(x)), slack=4)


def test_converting_leaves_the_global_random_state_alone():
    mx.random.seed(11)
    before = bits(mx.random.state[0])
    rank_layer().to_linear()
    assert bits(mx.random.state[0]) == before


def test_stock_quantisation_accepts_a_model_of_rank_layers():
    bare, kept = rank_layer(8, 64, 3), rank_layer(8, 64, 3, base=linear(8, 64))
    model = nn.Sequential(Model(bare), Model(copy.deepcopy(kept)))
    nn.quantize(model, group_size=64, bits=8)
    first, second = (block.layers[0]["proj"] for block in model.layers)
    expected = bare.to_linear().to_quantized(64, 8)
    assert isinstance(first, nn.QuantizedLinear)
    assert bits(first.weight) == bits(expected.weight)
    assert isinstance(second.base, nn.QuantizedLinear)
    assert bits(second.U) == bits(kept.U)
    direct = kept.to_quantized(64, 8)
    assert bits(direct.base.weight) == bits(second.base.weight)
    assert direct.to_quantized(64, 8) is direct


def test_quantising_refuses_a_weight_that_is_not_finite():
    layer = rank_layer(8, 64, 2, base=linear(8, 64))
    layer.base.weight[3, 5] = mx.nan
    with pytest.raises(ValueError, match=r"`weight` must be finite.*\(3, 5\)"):
        layer.to_quantized(64, 4)


def lora_model(frozen):
    """Two numbered blocks, one on a backbone with a bias, as mlx-lm's tuner expects them."""
    layers = [rank_layer(8, 6, 2), rank_layer(8, 6, 2, base=linear(8, 6))]
    model = nn.Module()
    model.layers = [Model(layer) for layer in layers]
    if frozen:
        model.freeze()
    return model


@pytest.mark.parametrize("frozen", [False, True])
def test_mlx_lm_finds_the_layer_and_puts_a_lora_on_top(frozen):
    utils = pytest.importorskip("mlx_lm.tuner.utils")
    model = lora_model(frozen)
    x = gaussian(3, 6)
    before = [np.array(block(x)) for block in model.layers]
    utils.linear_to_lora_layers(model, -1, {"rank": 2, "scale": 1.0, "dropout": 0.0})
    names = {name for name, _ in tree_flatten(model.trainable_parameters())}
    loras = [block.layers[0]["proj"] for block in model.layers]
    for block, expected in zip(model.layers, before, strict=True):
        assert_close(np.array(block(x)), expected)
    assert {type(lora).__name__ for lora in loras} == {"LoRALinear"}
    assert all(name.endswith(("lora_a", "lora_b")) for name in names) is frozen
    for lora in loras:
        lora.lora_b = gaussian(*lora.lora_b.shape, seed=2)
        assert_close(np.array(lora.fuse()(x)), np.array(lora(x)), slack=4)


def test_weights_saved_by_name_load_into_a_layer_of_the_same_rank():
    source = rank_layer(seed=1, base=linear(12, 9, seed=5))
    target = rank_layer(seed=2, base=linear(12, 9, seed=6))
    target.load_weights(tree_flatten(source.parameters()))
    x = gaussian(2, 9)
    assert bits(target(x)) == bits(source(x))


def test_sizes_and_bytes_are_those_of_the_factors():
    layer = rank_layer(12, 9, 4)
    assert (layer.shape, layer.rank, layer.max_rank) == ((12, 9), 4, 9)
    assert layer.nbytes == 4 * (12 * 4 + 4 + 4 * 9)
    assert layer.weight.shape == (12, 9)
    assert "rank=4" in repr(layer)


def factors_of(*shapes):
    return [mx.zeros(shape) for shape in shapes]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: RankLayer(*factors_of((4, 2), (3,), (2, 5))), ValueError, r"\(out, r\), \(r,\)"),
        (lambda: RankLayer(*factors_of((4, 2), (2,), (3, 5))), ValueError, r"\(3, 5\)"),
        (lambda: RankLayer(*factors_of((4, 2), (2, 1), (2, 5))), ValueError, r"\(2, 1\)"),
        (lambda: RankLayer(*factors_of((4,), (2,), (2, 5))), ValueError, r"\(4,\)"),
        (lambda: RankLayer(*factors_of((4, 5), (5,), (5, 6))), ValueError, "= 4 .* got 5"),
        (
            lambda: RankLayer(mx.zeros((4, 2), mx.int32), *factors_of((2,), (2, 5))),
            TypeError,
            "`U` must be floating",
        ),
        (lambda: rank_layer(base=linear(9, 12)), ValueError, r"`base` must have shape \(12, 9\)"),
        (lambda: rank_layer(base=nn.Embedding(12, 9)), TypeError, "got Embedding"),
        (lambda: rank_layer(bias=mx.zeros(9)), ValueError, r"`bias` must have shape \(12,\)"),
        (
            lambda: rank_layer(base=linear(12, 9), bias=mx.zeros(12)),
            ValueError,
            "`bias` must be None",
        ),
        (lambda: RankLayer.from_linear(linear(4, 3), 4), ValueError, "= 3 .* got 4"),
        (lambda: RankLayer.from_linear(linear(4, 3), -1), ValueError, "got -1"),
        (lambda: RankLayer.from_linear(nn.ReLU(), 1), TypeError, "got ReLU"),
        (
            lambda: RankLayer.from_linear(linear(4, 3), 1, gram=np.eye(3), keep_base=True),
            ValueError,
            "`gram`",
        ),
        (lambda: rank_layer().grow(-1, key=mx.random.key(0)), ValueError, "= 5 .* got -1"),
        (lambda: rank_layer().park([0, 0]), ValueError, r"`indices` must hold distinct .* = 3"),
        (lambda: rank_layer().park([4]), ValueError, "`indices`"),
        (lambda: rank_layer().keep([0, 0]), ValueError, r"`indices` must hold distinct .* = 3"),
        (lambda: rank_layer().keep([-1]), ValueError, "`indices`"),
        (lambda: rank_layer().truncation_error([4]), ValueError, "`parked`"),
        (lambda: rank_layer().soft_threshold(-0.1), ValueError, "`tau`"),
        (lambda: rank_layer().soft_threshold(float("nan")), ValueError, "`tau`"),
        (
            lambda: rank_layer().set_factors(*factors_of((9, 1), (1,), (1, 12))),
            ValueError,
            r"layer of shape \(12, 9\)",
        ),
        (
            lambda: rank_layer().wake(
                Factors(*(a.astype(mx.float16) for a in rank_layer().factors()))
            ),
            TypeError,
            "`U` must be",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_its_limit(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_refused_change_leaves_the_layer_as_it_was():
    layer = rank_layer(5, 5, 4)
    before = [bits(a) for a in layer.factors()]
    with pytest.raises(ValueError, match="must not exceed"):
        layer.wake(rank_layer(5, 5, 2).factors())
    assert [bits(a) for a in layer.factors()] == before


@pytest.mark.parametrize("indices", [range(1, 4, 2), [1, 3], np.array([1, 3]), mx.array([1, 3])])
def test_indices_of_any_kind_of_integer_park_the_same_components(indices: Any) -> None:
    layer = RankLayer(mx.eye(4), mx.array([4.0, 3.0, 2.0, 1.0]), mx.eye(4))
    assert layer.park(indices).S.tolist() == [3.0, 1.0]
    assert layer.S.tolist() == [4.0, 2.0]


@pytest.mark.parametrize("mask", [[True, False], np.array([True, False]), [0.5]])
def test_a_mask_is_no_list_of_indices(mask: Any) -> None:
    layer = RankLayer(mx.eye(2), mx.array([2.0, 1.0]), mx.eye(2))
    for act in (layer.park, layer.keep, layer.select):
        with pytest.raises(TypeError, match="must hold integers"):
            act(mask)
    assert layer.rank == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("keep_base", [False, True])
def test_a_weight_that_is_not_finite_is_refused(bad, keep_base):
    linear = nn.Linear(4, 3)
    linear.weight[2, 1] = bad
    with pytest.raises(ValueError, match=r"1 of its 12 entries are not, the first at \(2, 1\)"):
        RankLayer.from_linear(linear, 1, keep_base=keep_base)


def test_only_the_backbone_itself_unfreezes_the_backbone():
    layer = RankLayer.from_linear(nn.Linear(4, 3), 1, keep_base=True)
    nn.Sequential(layer).unfreeze()
    assert not layer.trainable_parameters()["base"]
    layer.base.unfreeze()
    assert layer.trainable_parameters()["base"].keys() == {"weight", "bias"}
