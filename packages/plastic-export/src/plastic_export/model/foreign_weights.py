"""Weights that other tools than MLX quantised, made the plain matrices that they stand for.

They are found by the names and types of their tensors, since a configuration leaves layers out
in ways of its own: what has no scale beside it is plain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from plastic_core.files import FormatError

from plastic_export.checkpoint.quantizers import Quantizer
from plastic_export.model.foreign_forms import (
    UnfitError,
    from_awq,
    from_float4,
    from_float8,
    from_gptq,
    from_integers,
    unpacked_integers,
)
from plastic_export.model.foreign_numbers import WORD, float8

Weights = dict[str, mx.array]

_BESIDE_CODES = ("scale", "scale_inv", "scales_inv", "scale_2", "zero_point", "g_idx")
_BESIDE_PACKED = ("packed", "scale", "shape", "global_scale", "zero_point", "g_idx")
_BESIDE_WORDS = ("qweight", "qzeros", "scales", "g_idx")
_UNUSED = {
    "input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "activation_scale",
    "output_scale", "q_scale", "k_scale", "v_scale", "kv_scale",
}  # fmt: skip
"""Scales of activations and of the key-value cache, for which a plain model has no use."""

_FLOATS = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
_HALVES = (mx.float16, mx.bfloat16)
_REMEDY = "correct 'quantization_config', or take the original that the checkpoint was made from"


class _Form(NamedTuple):
    """A weight in a foreign form.

    Attributes:
        name: Its name when it is plain.
        codes: The name of the tensor that holds its codes.
        beside: The tensors that it is stored in, by what their names end in.
    """

    name: str
    codes: str
    beside: dict[str, str]


def dequantized(weights: Weights, config: Mapping[str, Any], file: Path) -> Weights:
    """Return the tensors of a checkpoint, every weight in a foreign form made plain.

    Args:
        weights: The tensors of the files by name, as ``mx.load`` returns them: FP8 is uint8.
        config: Content of config.json, the quantisation of another tool under
            ``"quantization_config"``.
        file: The configuration's file, for the messages.

    Returns:
        ``weights`` itself where nothing in it is of a foreign form. Otherwise a new dictionary:
        the matrices under their plain names, floats of 8 and 4 bits in the type that the
        configuration states, integers in that of their scales, none computed yet; without the
        scales of weights, activations and key-value cache; the rest as it is.

    Raises:
        FormatError: If the tensors of a weight do not fit each other, or are of a form that is
            not read.
    """
    quantizer, dtype = Quantizer(config), _stated_type(config)
    forms = list(_forms(weights))
    mx.eval([weights[form.beside["shape"]] for form in forms if "shape" in form.beside])
    plain = Weights()
    for form in forms:
        parts = {leaf: weights[name] for leaf, name in form.beside.items()}
        try:
            plain[form.name] = _plain(weights[form.codes], parts, quantizer, dtype)
        except UnfitError as error:
            raise FormatError.about(file, str(error), _REMEDY, tensor=form.codes) from None
    if not plain:
        return weights
    used = {name for form in forms for name in (form.codes, *form.beside.values())}
    dropped = used | _unused(weights)
    return {name: array for name, array in weights.items() if name not in dropped} | plain


def _forms(weights: Weights) -> Iterator[_Form]:
    def beside(base: str, leaves: tuple[str, ...]) -> dict[str, str]:
        return {leaf: base + leaf for leaf in leaves if base + leaf in weights}

    for name, array in weights.items():
        if name.endswith(".qweight"):
            base = name.removesuffix("qweight")
            yield _Form(f"{base}weight", name, beside(base, _BESIDE_WORDS))
        elif name.endswith("weight_packed"):
            base = name.removesuffix("packed")
            yield _Form(base.removesuffix("_"), name, beside(base, _BESIDE_PACKED))
        elif array.dtype in (mx.uint8, mx.int8):
            parts = beside(f"{name}_", _BESIDE_CODES)
            if parts.keys() & {"scale", "scale_inv", "scales_inv"}:
                yield _Form(name, name, parts)


def _plain(codes: mx.array, parts: Weights, quantizer: Quantizer, dtype: mx.Dtype) -> mx.array:
    """Return the plain matrix of one weight, by the form that its parts and types tell."""
    if "qweight" in parts:
        return _from_words(parts, quantizer, dtype)
    scale = next((parts[k] for k in ("scale", "scale_inv", "scales_inv") if k in parts), None)
    if scale is None:
        raise UnfitError("no scale lies beside it")
    if "packed" in parts and codes.dtype != mx.uint8:
        return _from_packed_integers(codes, parts, quantizer, dtype)
    if "packed" in parts or "scale_2" in parts:
        return _from_scaled_float4(codes, scale, parts, dtype)
    if codes.dtype == mx.uint8:
        return from_float8(codes, scale, quantizer.blocks, dtype)
    if "scale" not in parts or quantizer.method != "compressed-tensors":
        raise UnfitError("its integers of 8 bits may be any codes: the configuration says nothing")
    zero, groups = parts.get("zero_point"), parts.get("g_idx")
    return from_integers(codes, scale, zero, groups, quantizer.blocks, _type(scale, dtype))


def _from_words(parts: Weights, quantizer: Quantizer, dtype: mx.Dtype) -> mx.array:
    """Return the matrix of a layer of GPTQ or AWQ, which look alike and are not."""
    if "scales" not in parts or quantizer.method not in ("gptq", "awq"):
        raise UnfitError(f"quantised by {quantizer.method!r:.60}, it is neither GPTQ nor AWQ")
    words, scales, zeros = parts["qweight"], parts["scales"], parts.get("qzeros")
    dtype = _type(scales, dtype)
    if quantizer.method == "awq":
        return from_awq(words, zeros, scales, dtype)
    if zeros is None:
        raise UnfitError("no 'qzeros' lie beside it")
    offset = 0 if quantizer.settings.get("checkpoint_format") == "gptq_v2" else 1
    return from_gptq(words, zeros, scales, parts.get("g_idx"), offset, dtype)


def _from_packed_integers(
    words: mx.array, parts: Weights, quantizer: Quantizer, dtype: mx.Dtype
) -> mx.array:
    """Return the matrix of integers that compressed-tensors packed."""
    if "shape" not in parts:
        raise UnfitError("no 'weight_shape' lies beside it")
    rows, columns = np.array(parts["shape"]).tolist()
    scale, zero = parts["scale"], parts.get("zero_point")
    bits = _width(words.shape[-1], columns, quantizer.bits or {2, 4, 8})
    if zero is not None and zero.dtype == mx.int32:
        zero = unpacked_integers(zero.T, bits, rows).T
    values = unpacked_integers(words, bits, columns)
    groups = parts.get("g_idx")
    return from_integers(values, scale, zero, groups, quantizer.blocks, _type(scale, dtype))


def _width(words: int, columns: int, bits: set[int]) -> int:
    """Return the width of the integers of which so many take so many words."""
    fitting = [b for b in sorted(bits) if math.ceil(columns * b / WORD) == words]
    padded = [b for b in sorted(bits) if WORD % b and math.ceil(columns / (WORD // b)) == words]
    if len(fitting) != 1 or padded:
        raise UnfitError(f"how many bits {columns} integers in {words} words have is not certain")
    return fitting[0]


def _from_scaled_float4(
    codes: mx.array, scale: mx.array, parts: Weights, dtype: mx.Dtype
) -> mx.array:
    """Return the matrix of E2M1 codes: MXFP4, or NVFP4 with its second scale."""
    if "scale_2" in parts:
        return from_float4(codes, float8(scale) * _single(parts["scale_2"]), 16, dtype)
    if "global_scale" in parts:
        return from_float4(codes, float8(scale) / _single(parts["global_scale"]), 16, dtype)
    return from_float4(codes, scale, 32, dtype)


def _single(scale: mx.array) -> mx.array:
    if scale.size != 1:
        raise UnfitError(f"its scale of the whole matrix has shape {scale.shape}")
    return scale.reshape(()).astype(mx.float32)


def _type(scale: mx.array, stated: mx.Dtype) -> mx.Dtype:
    """Return the type of integers times scales: that of the scales, if it is a type of weights."""
    return scale.dtype if scale.dtype in _HALVES else stated


def _stated_type(config: Mapping[str, Any]) -> mx.Dtype:
    """Return the type of a model's weights, bfloat16 where the configuration states none."""
    for settings in (config, config.get("text_config")):
        for key in ("dtype", "torch_dtype"):
            name = settings.get(key) if isinstance(settings, Mapping) else None
            if isinstance(name, str) and (dtype := _FLOATS.get(name.removeprefix("torch."))):
                return dtype
    return mx.bfloat16


def _unused(weights: Weights) -> set[str]:
    """Return the names of the scales in ``_UNUSED``, those of expert weights included."""
    beside = {f"{name}_activation_scale" for name in weights}
    return {name for name in weights if name.rpartition(".")[2] in _UNUSED or name in beside}
