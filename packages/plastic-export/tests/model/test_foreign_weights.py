"""Weights in the forms of other quantisers, against each tool's formula in NumPy."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as stock_load
from numpy.typing import NDArray
from plastic_core.files import FormatError
from plastic_core.testing import same_bits
from plastic_export.checkpoint.warning import CheckpointWarning
from plastic_export.model.foreign_numbers import float8, integers, power_of_two
from plastic_export.model.foreign_weights import dequantized, sanitized
from plastic_export.model.load import load_model

Make = Callable[..., Path]
Floats = NDArray[np.float32]
FILE = Path("config.json")
RNG = np.random.default_rng(5)


def e4m3(code: int) -> float:
    """The value of a code by the table of the OFP8 specification, in exact arithmetic."""
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3 = np.array([e4m3(code) for code in range(256)], np.float32)


def bf16(values: Floats) -> mx.array:
    """Round to nearest, ties to even, by integer arithmetic on the bits."""
    words = values.view(np.uint32)
    rounded = (words + 0x7FFF + (words >> 16 & 1)) >> 16
    rounded = np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    return mx.array(rounded).view(mx.bfloat16)


def equal(given: mx.array, expected: mx.array) -> bool:
    """Tell whether all bits are the same, those of NaNs aside."""
    return given.dtype == expected.dtype and bool(mx.array_equal(given, expected, equal_nan=True))


def codes(*shape: int, finite: bool = True) -> NDArray[np.uint8]:
    drawn = RNG.integers(0, 256, shape, np.uint8)
    return np.where((drawn & 127) == 127, 0, drawn).astype(np.uint8) if finite else drawn


def scales(*shape: int) -> Floats:
    return np.exp2(RNG.uniform(-12, -4, shape)).astype(np.float32)


def per_entry(scale: Floats, shape: tuple[int, int], block: tuple[int, int]) -> Floats:
    """The scale of each entry, looked up one by one."""
    rows, columns = (np.arange(side) // width for side, width in zip(shape, block, strict=True))
    return scale[np.ix_(rows, columns)]


def test_every_code_of_eight_bits_has_the_value_of_the_specification() -> None:
    every = mx.array(np.arange(256, dtype=np.uint8))
    np.testing.assert_array_equal(np.array(float8(every)), E4M3)
    powers = np.array([2.0**power for power in range(-127, 128)], np.float32)
    np.testing.assert_array_equal(np.array(power_of_two(every)), np.append(powers, np.nan))


SHAPES = [(128, 256), (192, 320), (100, 60), (1, 129), (256, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stated", [True, False], ids=["stated", "usual"])
def test_blocks_of_fp8_that_the_sides_may_cut_are_scaled_exactly(
    shape: tuple[int, int], stated: bool
) -> None:
    drawn, scale = codes(*shape, finite=False), scales(*(-(-side // 128) for side in shape))
    weights = {"a.weight": mx.array(drawn), "a.weight_scale_inv": mx.array(scale)}
    settings = {"quantization_config": {"weight_block_size": [128, 128]}} if stated else {}
    plain = dequantized(weights, settings, FILE)
    expected = bf16(E4M3[drawn] * per_entry(scale, shape, (128, 128)))
    assert plain.keys() == {"a.weight"}
    assert equal(plain["a.weight"], expected)


def powers(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(110, 130, shape, np.uint8)


BF16_SCALE = bf16(scales(12, 1))
SCALES: dict[str, tuple[str, mx.array, Floats]] = {}
for _name, _scale in {
    "one": scales(),
    "one in a row": scales(1),
    "a row each": scales(12, 1),
    "a row each, flat": scales(12),
}.items():
    _full = np.broadcast_to(_scale.reshape(-1, 1) if _scale.ndim == 1 else _scale, (12, 64))
    SCALES[_name] = ("weight_scale", mx.array(_scale), _full)
SCALES["bfloat16"] = (
    "weight_scale",
    BF16_SCALE,
    np.broadcast_to(np.array(BF16_SCALE.astype(mx.float32)), (12, 64)),
)
_powers = powers(12, 2)
SCALES["powers of two for 32 inputs"] = (
    "weight_scale_inv",
    mx.array(_powers),
    per_entry(np.exp2(_powers.astype(np.float32) - 127), (12, 64), (1, 32)),
)
_powers = powers(1, 1)
SCALES["powers of two for a block"] = (
    "weight_scale_inv",
    mx.array(_powers),
    per_entry(np.exp2(_powers.astype(np.float32) - 127), (12, 64), (128, 128)),
)


@pytest.mark.parametrize("case", SCALES)
def test_every_kind_of_scale_of_fp8_is_applied_exactly(case: str) -> None:
    name, scale, full = SCALES[case]
    drawn = codes(12, 64)
    weights = {"a.weight": mx.array(drawn), f"a.{name}": scale}
    expected = bf16(E4M3[drawn] * full)
    assert same_bits(dequantized(weights, {}, FILE)["a.weight"], expected)


@pytest.mark.parametrize("shape", [(), (3,), (3, 1, 1), (3, 1, 8), (3, 2, 2)])
def test_a_stack_of_experts_in_fp8_is_scaled_by_expert_row_or_block(shape: tuple[int, ...]) -> None:
    drawn, scale = codes(3, 200, 130) if shape == (3, 2, 2) else codes(3, 4, 8), scales(*shape)
    full = scale.reshape(*shape, *[1] * (3 - len(shape)))
    if shape == (3, 2, 2):
        full = np.stack([per_entry(part, (200, 130), (128, 128)) for part in scale])
    weights = {"e.down_proj": mx.array(drawn), "e.down_proj_scale_inv": mx.array(scale)}
    weights["e.down_proj_activation_scale"] = mx.array(1.0)
    plain = dequantized(weights, {}, FILE)
    assert plain.keys() == {"e.down_proj"}
    assert same_bits(plain["e.down_proj"], bf16(E4M3[drawn] * full))


@pytest.mark.parametrize(("stated", "dtype"), [("float16", mx.float16), ("float32", mx.float32)])
def test_the_result_is_of_the_type_that_the_configuration_states(
    stated: str, dtype: mx.Dtype
) -> None:
    drawn, scale = codes(8, 8), scales(8, 1)
    weights = {"a.weight": mx.array(drawn), "a.weight_scale": mx.array(scale)}
    expected = (E4M3[drawn] * scale).astype(np.float16 if stated == "float16" else np.float32)
    for settings in ({"torch_dtype": f"torch.{stated}"}, {"text_config": {"dtype": stated}}):
        plain = dequantized(weights, settings, FILE)["a.weight"]
        assert same_bits(plain, mx.array(expected))


def test_a_scale_that_does_not_fit_is_refused_by_name() -> None:
    weights = {"a.weight": mx.array(codes(300, 300)), "a.weight_scale_inv": mx.array(scales(2, 3))}
    with pytest.raises(FormatError, match=r"config.json: tensor 'a.weight': .*do not fit"):
        dequantized(weights, {}, FILE)


def test_plain_weights_and_what_belongs_to_the_model_stay_as_they_are() -> None:
    kept = {
        "a.weight": mx.ones((2, 2)),
        "a.weight_scale": mx.ones(1),
        "correct_output_scale": mx.ones(2),
    }
    assert dequantized(kept, {}, FILE) is kept
    fp8 = {"b.weight": mx.array(codes(2, 2)), "b.weight_scale": mx.array(1.0)}
    unused = {f"b.{leaf}": mx.array(1.0) for leaf in ("input_scale", "k_scale", "v_scale")}
    plain = dequantized(kept | fp8 | unused, {}, FILE)
    assert plain.keys() == kept.keys() | {"b.weight"}
    assert all(plain[name] is array for name, array in kept.items())


def quantized_fp8(
    weights: Mapping[str, mx.array], kind: str
) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """Return a checkpoint whose layers are FP8, and the plain one that it stands for."""
    stored, plain = {}, {}
    for name, array in weights.items():
        if not name.endswith("proj.weight"):
            stored[name] = plain[name] = array
            continue
        drawn = codes(*array.shape)
        one = kind == "per tensor"
        shape = () if one else tuple(-(-side // 128) for side in array.shape)
        scale = scales(*shape)
        full = scale if one else per_entry(scale, array.shape, (128, 128))
        stored[name] = mx.array(drawn)
        stored[name + ("_scale" if one else "_scale_inv")] = mx.array(scale)
        if one:
            stored[name.replace("weight", "input_scale")] = mx.array(1.0)
        plain[name] = bf16(E4M3[drawn] * full)
    return stored, plain


BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8": ("blocks", {"quantization_config": BLOCKS}),
    "compressed-tensors": (
        "per tensor",
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
            }
        },
    ),
    "modelopt": (
        "per tensor",
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
    ),
    "fbgemm": ("per tensor", {"quantization_config": {"quant_method": "fbgemm_fp8"}}),
    "nested": ("blocks", {"text_config": {"quantization_config": BLOCKS}}),
    "not said": ("blocks", {}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_model_in_fp8_is_loaded_as_the_plain_one_that_it_stands_for(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array], case: str
) -> None:
    kind, settings = CONFIGS[case]
    stored, plain = quantized_fp8(tiny_weights, kind)
    folder = make_checkpoint("fp8", weights=stored, **settings)
    expected, _ = stock_load(make_checkpoint("plain", weights=plain), lazy=True)
    given = dict(tree_flatten(load_model(folder).parameters()))
    for name, array in tree_flatten(expected.parameters()):
        assert same_bits(given.pop(name), array), name
    assert not given


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v32", "mimo_v2_flash", "minimax"])
def test_where_mlx_lm_makes_fp8_plain_by_itself_the_bits_are_the_same(family: str) -> None:
    shape = (192, 320)
    scale = mx.array(scales(*(-(-side // 128) for side in shape)))
    weights = {"a.weight": mx.array(codes(*shape)), "a.weight_scale_inv": scale}
    sanitize = import_module(f"mlx_lm.models.{family}").Model.sanitize
    model = SimpleNamespace(args=SimpleNamespace(num_hidden_layers=0))
    expected = sanitize(model, dict(weights))["a.weight"]
    given = dequantized(weights, {}, FILE)
    assert same_bits(given["a.weight"], expected)
    assert same_bits(sanitize(model, given)["a.weight"], expected)


def packed(values: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Pack unsigned integers along the last axis, lowest bits first, by a list of single bits."""
    every = (values[..., None].astype(np.uint8) >> np.arange(bits, dtype=np.uint8)) & 1
    stream = every.reshape(*values.shape[:-1], -1)
    stream = np.pad(stream, [(0, 0)] * (values.ndim - 1) + [(0, -stream.shape[-1] % 32)])
    return np.packbits(stream, axis=-1, bitorder="little").view("<i4")


def integers_of(bits: int, *shape: int) -> NDArray[np.int64]:
    return RNG.integers(0, 2**bits, shape)


@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_of_every_width_are_found_in_their_words(bits: int) -> None:
    drawn = integers_of(bits, 3, 96)
    np.testing.assert_array_equal(np.array(integers(mx.array(packed(drawn, bits)), bits)), drawn)


def gptq(
    bits: int, group: int, *, offset: int, acts: bool, index: bool = True
) -> tuple[dict[str, mx.array], mx.array]:
    """Return a GPTQ layer of 64 outputs and 96 inputs, and its weight (out, in)."""
    inputs, outputs = 96, 64
    q, zero = integers_of(bits, inputs, outputs), 1 + integers_of(bits, inputs // group, outputs)
    zero = np.minimum(zero, 2**bits - 1)  # what version 1 can store
    scale = scales(inputs // group, outputs).astype(np.float16)
    where = np.arange(inputs) // group
    where = RNG.permutation(where) if acts else where
    weight = (scale[where].astype(np.float64) * (q - zero[where])).astype(np.float16)
    tensors = {
        "a.qweight": packed(q.T, bits).T.copy(),
        "a.qzeros": packed(zero - offset, bits),
        "a.scales": scale,
    }
    if index:
        tensors["a.g_idx"] = where.astype(np.int32)
    return {name: mx.array(array) for name, array in tensors.items()}, mx.array(weight.T.copy())


def said(method: str, **settings: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **settings}}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("acts", [False, True], ids=["in order", "by activation"])
def test_gptq_is_read_by_its_own_formula(bits: int, acts: bool) -> None:
    for layout, offset in {"gptq": 1, "gptq_v2": 0}.items():
        tensors, weight = gptq(bits, 32, offset=offset, acts=acts)
        bias = {"a.bias": mx.ones(64)}
        plain = dequantized(tensors | bias, said("gptq", checkpoint_format=layout), FILE)
        assert plain.keys() == {"a.weight", "a.bias"}
        assert same_bits(plain["a.weight"], weight)
    rounded = said("auto-round", packing_format="auto_round:auto_gptq")
    tensors, weight = gptq(bits, 32, offset=1, acts=acts)
    assert same_bits(dequantized(tensors, rounded, FILE)["a.weight"], weight)
    tensors, weight = gptq(bits, 96, offset=1, acts=False, index=False)
    assert same_bits(dequantized(tensors, said("gptq"), FILE)["a.weight"], weight)


def test_a_gptq_input_of_no_group_is_no_number() -> None:
    tensors, _ = gptq(4, 32, offset=1, acts=False)
    tensors["a.g_idx"][5] = 3
    weight = np.array(dequantized(tensors, said("gptq"), FILE)["a.weight"])
    assert np.isnan(weight[:, 5]).all()
    assert np.isfinite(np.delete(weight, 5, axis=1)).all()


def awq(zeros: bool = True) -> tuple[dict[str, mx.array], mx.array]:
    """Return an AWQ layer of 64 outputs and 96 inputs, and its weight (out, in)."""
    q, zero = integers_of(4, 96, 64), integers_of(4, 3, 64)
    zero = zero if zeros else np.full_like(zero, 8)
    scale = scales(3, 64).astype(np.float16)
    where = np.arange(96) // 32
    weight = ((q - zero[where]) * scale[where].astype(np.float64)).astype(np.float16)

    def interleaved(values: NDArray[np.int64]) -> mx.array:
        eights = values.reshape(len(values), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return mx.array(packed(eights.reshape(values.shape), 4))

    tensors = {"a.qweight": interleaved(q), "a.scales": mx.array(scale)}
    if zeros:
        tensors["a.qzeros"] = interleaved(zero)
    return tensors, mx.array(weight.T.copy())


@pytest.mark.parametrize("zeros", [True, False])
def test_awq_is_read_by_its_own_formula(zeros: bool) -> None:
    tensors, weight = awq(zeros)
    rounded = said("auto-round", packing_format="auto_round:auto_awq")
    for settings in (said("awq"), said("awq", version="GEMM"), rounded):
        assert same_bits(dequantized(tensors, settings, FILE)["a.weight"], weight)


def group_settings(bits: int, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, **weights}}}
    return said("compressed-tensors", format="pack-quantized", config_groups=groups)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("zeros", ["none", "packed", "bytes"])
def test_packed_integers_of_compressed_tensors_are_read_by_its_formula(
    bits: int, groups: int, zeros: str
) -> None:
    rows, columns, half = 40, 96, 2 ** (bits - 1)
    q, zero = integers_of(bits, rows, columns), integers_of(bits, rows, groups)
    zero = np.full_like(zero, half) if zeros == "none" else zero
    scale = bf16(scales(rows, groups))
    where = np.arange(columns) // (columns // groups)
    full = np.array(scale.astype(mx.float32))[:, where]
    tensors = {
        "a.weight_packed": mx.array(packed(q, bits)),
        "a.weight_scale": scale,
        "a.weight_shape": mx.array([rows, columns], mx.int64),
    }
    if zeros == "packed":
        tensors["a.weight_zero_point"] = mx.array(packed(zero.T, bits).T.copy())
    elif zeros == "bytes":
        tensors["a.weight_zero_point"] = mx.array((zero - half).astype(np.int8))
    plain = dequantized(tensors, group_settings(bits), FILE)
    assert plain.keys() == {"a.weight"}
    assert same_bits(plain["a.weight"], bf16((q - zero[:, where]).astype(np.float32) * full))


def test_groups_ordered_by_activation_are_found_column_by_column() -> None:
    q, scale = integers_of(4, 16, 64), bf16(scales(16, 2))
    for where in (RNG.permutation(np.arange(64) // 32), np.full(64, -1)):
        tensors = {
            "a.weight_packed": mx.array(packed(q, 4)),
            "a.weight_scale": scale,
            "a.weight_shape": mx.array([16, 64], mx.int64),
            "a.weight_g_idx": mx.array(where.astype(np.int32)),
        }
        group = where if where[0] >= 0 else np.arange(64) // 32
        full = np.array(scale.astype(mx.float32))[:, group]
        plain = dequantized(tensors, group_settings(4), FILE)["a.weight"]
        assert same_bits(plain, bf16((q - 8).astype(np.float32) * full))


@pytest.mark.parametrize("zeros", [True, False])
def test_integers_of_one_byte_are_read_by_the_formula_of_compressed_tensors(zeros: bool) -> None:
    q, zero = (RNG.integers(-128, 128, shape).astype(np.int8) for shape in ((12, 40), (12, 1)))
    scale = bf16(scales(12, 1))
    tensors = {"a.weight": mx.array(q), "a.weight_scale": scale}
    if zeros:
        tensors["a.weight_zero_point"] = mx.array(zero)
    centred = q.astype(np.float32) - (zero.astype(np.float32) if zeros else 0)
    plain = dequantized(tensors, group_settings(8), FILE)["a.weight"]
    assert same_bits(plain, bf16(centred * np.array(scale.astype(mx.float32))))


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])


@pytest.mark.parametrize("kind", ["nvfp4", "modelopt", "mxfp4"])
def test_floats_of_four_bits_are_read_by_their_tools_formulas(kind: str) -> None:
    drawn, width = codes(8, 48), 32 if kind == "mxfp4" else 16
    values = E2M1[np.stack([drawn & 15, drawn >> 4], -1).reshape(8, 96)]
    scale = powers(8, 96 // width) if kind == "mxfp4" else codes(8, 96 // width)
    single = scales(1)
    tensors = {"a.weight_scale": mx.array(scale)}
    if kind == "mxfp4":
        numbers = np.exp2(scale.astype(np.float32) - 127)
        tensors["a.weight_packed"] = mx.array(drawn)
    elif kind == "nvfp4":
        numbers = E4M3[scale] / single
        tensors |= {"a.weight_packed": mx.array(drawn), "a.weight_global_scale": mx.array(single)}
    else:
        numbers = E4M3[scale] * single
        tensors |= {"a.weight": mx.array(drawn), "a.weight_scale_2": mx.array(single[0])}
    plain = dequantized(tensors, said("modelopt", quant_algo="NVFP4"), FILE)
    assert plain.keys() == {"a.weight"}
    expected = values * per_entry(numbers.astype(np.float32), (8, 96), (1, width))
    assert equal(plain["a.weight"], bf16(expected))


# Whole models.

Quantise = Callable[[mx.array], tuple[dict[str, mx.array], mx.array]]


def as_gptq(array: mx.array) -> tuple[dict[str, mx.array], mx.array]:
    rows, columns = array.shape
    q, zero = integers_of(4, columns, rows), 1 + integers_of(3, columns // 16, rows)
    scale = scales(columns // 16, rows).astype(np.float16)
    where = RNG.permutation(np.arange(columns) // 16)
    weight = ((q - zero[where]) * scale[where].astype(np.float64)).astype(np.float16)
    words = {"qweight": packed(q.T, 4).T.copy(), "qzeros": packed(zero - 1, 4), "scales": scale}
    parts = words | {"g_idx": where.astype(np.int32)}
    return {name: mx.array(part) for name, part in parts.items()}, mx.array(weight.T.copy())


def as_packed_integers(array: mx.array) -> tuple[dict[str, mx.array], mx.array]:
    rows, columns = array.shape
    q, scale = integers_of(4, rows, columns), bf16(scales(rows, columns // 16))
    full = np.array(scale.astype(mx.float32)).repeat(16, axis=1)
    parts = {
        "weight_packed": mx.array(packed(q, 4)),
        "weight_scale": scale,
        "weight_shape": mx.array([rows, columns], mx.int64),
    }
    return parts, bf16((q - 8).astype(np.float32) * full)


WHOLE: dict[str, tuple[Quantise, dict[str, Any]]] = {
    "gptq": (as_gptq, said("gptq", bits=4, group_size=16, desc_act=True)),
    "pack-quantized": (as_packed_integers, group_settings(4)),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_model_of_integers_is_loaded_as_the_plain_one_that_it_stands_for(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array], case: str
) -> None:
    quantise, settings = WHOLE[case]
    stored, plain = dict(tiny_weights), dict(tiny_weights)
    for name in [name for name in tiny_weights if name.endswith("proj.weight")]:
        parts, plain[name] = quantise(stored.pop(name))
        stored |= {name.removesuffix("weight") + leaf: part for leaf, part in parts.items()}
    expected, _ = stock_load(make_checkpoint("plain", weights=plain), lazy=True)
    given = load_model(make_checkpoint("stored", weights=stored, **settings))
    for (name, one), (_, other) in zip(
        tree_flatten(given.parameters()), tree_flatten(expected.parameters()), strict=True
    ):
        assert same_bits(one, other), name


def test_codes_that_nothing_explains_are_refused(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array]
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    weights = tiny_weights | {name: mx.zeros(tiny_weights[name].shape, mx.uint8)}
    for settings in ({}, said("fp8"), said("compressed-tensors", format="float-quantized")):
        folder = make_checkpoint("codes", weights=weights, **settings)
        with pytest.raises(FormatError, match=rf"'{name}': it holds uint8 codes, and nothing"):
            load_model(folder)
        shutil.rmtree(folder)


def test_bytes_are_integers_where_compressed_tensors_says_so_alone() -> None:
    tensors = {"a.weight": mx.zeros((4, 4), mx.int8), "a.weight_scale": mx.ones((4, 1))}
    with pytest.raises(FormatError, match=r"'a\.weight': its integers of 8 bits may be any codes"):
        dequantized(tensors, said("fp8"), FILE)


def test_words_of_an_unknown_tool_are_refused() -> None:
    tensors, _ = awq()
    with pytest.raises(FormatError, match=r"'a\.qweight': .* neither GPTQ nor AWQ"):
        dequantized(tensors, said("compressed-tensors"), FILE)


@pytest.mark.parametrize("leaf", ["qzeros", "scales", "g_idx"])
def test_words_whose_tensors_do_not_fit_are_refused_by_name(leaf: str) -> None:
    tensors, _ = gptq(4, 32, offset=1, acts=False)
    tensors[f"a.{leaf}"] = tensors[f"a.{leaf}"][:2]
    with pytest.raises(FormatError, match=r"config\.json: tensor 'a\.qweight': .*do not fit"):
        dequantized(tensors, said("gptq"), FILE)


def test_a_model_that_takes_over_codes_is_given_them() -> None:
    """What mlx-lm then holds is exactly what the formula of compressed-tensors gives."""
    parts, weight = as_packed_integers(mx.zeros((32, 64)))
    weights = {f"a.{leaf}": part for leaf, part in parts.items()}
    own = import_module("mlx_lm.models.deepseek_v3").Model.sanitize
    model = SimpleNamespace(args=SimpleNamespace(num_hidden_layers=0), parameters=dict)
    config = group_settings(4)
    result = sanitized(weights, model, partial(own, model), config, FILE)
    assert config == group_settings(4)
    dense = mx.dequantize(
        result["a.weight"],
        result["a.scales"].astype(mx.float32),
        result["a.biases"].astype(mx.float32),
        group_size=16,
        bits=4,
    )
    assert same_bits(dense.astype(mx.bfloat16), weight)
    unlike = weights | {"a.weight_zero_point": mx.zeros((32, 4), mx.int8)}
    plain = sanitized(unlike, model, partial(own, model), config, FILE)
    assert plain.keys() == {"a.weight"}
    assert config["quantization_config"] is None


def test_scales_of_the_cache_are_left_out_with_a_word(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array]
) -> None:
    scale = {f"model.layers.0.self_attn.{leaf}": mx.array(1.0) for leaf in ("k_scale", "v_scale")}
    settings = said("compressed-tensors", format="float-quantized", kv_cache_scheme={})
    folder = make_checkpoint(weights=tiny_weights | scale, **settings)
    with pytest.warns(CheckpointWarning, match=r"it holds 2 scales for a key-value cache"):
        given = load_model(folder)
    assert same_bits(given.model.embed_tokens.weight, tiny_weights["model.embed_tokens.weight"])


def test_settings_in_a_file_of_their_own_are_read(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array]
) -> None:
    stored, plain = quantized_fp8(tiny_weights, "per tensor")
    folder = make_checkpoint(weights=stored)
    settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(settings))
    given = dict(tree_flatten(load_model(folder).parameters()))
    assert all(same_bits(given[name], array) for name, array in plain.items())


def test_codes_that_mlx_lm_takes_for_numbers_are_made_plain_before() -> None:
    """The model of Ministral multiplies the codes themselves by their scale."""
    drawn, scale = codes(8, 16), scales()
    weights = {"a.weight": mx.array(drawn), "a.weight_scale_inv": mx.array(scale)}
    own = import_module("mlx_lm.models.ministral3").Model.sanitize
    args = SimpleNamespace(tie_word_embeddings=False)
    model = SimpleNamespace(args=args, parameters=dict)
    result = sanitized(weights, model, partial(own, model), said("fp8"), FILE)
    assert same_bits(result["a.weight"], bf16(E4M3[drawn] * scale))


def test_codes_of_bitnet_are_left_to_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    weights = {"a.weight": mx.array(codes(4, 8)), "a.weight_scale": mx.array([1.0])}
    assert sanitized(weights, nn.Module(), dict, said("bitnet"), FILE) == weights
    model = SimpleNamespace(
        parameters=lambda: {"a": {"weight": mx.zeros((1, 8), mx.uint8), "weight_scale": mx.ones(1)}}
    )
    assert sanitized(weights, model, dict, {}, FILE) == weights
