"""Weights that other tools than MLX quantised, made the plain matrices that they stand for.

They are found by the names and types of their tensors, since a configuration leaves layers out
in ways of its own: what has no scale beside it is plain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from plastic_core.files import FormatError

from plastic_export.checkpoint.quantizers import Quantizer
from plastic_export.checkpoint.warning import warn_about
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
Sanitize = Callable[[Weights], Weights]

_BESIDE_CODES = ("scale", "scale_inv", "scales_inv", "scale_2", "zero_point", "g_idx")
_BESIDE_PACKED = ("packed", "scale", "shape", "global_scale", "zero_point", "g_idx")
_BESIDE_WORDS = ("qweight", "qzeros", "scales", "g_idx")
_UNUSED = {
    "input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "activation_scale",
    "output_scale", "q_scale",
}  # fmt: skip
_OF_CACHE = {"k_scale", "v_scale", "kv_scale"}

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


def sanitized(
    weights: Weights, model: nn.Module, sanitize: Sanitize, config: dict[str, Any], file: Path
) -> Weights:
    """Return what mlx-lm's model makes of the tensors, foreign weights being made plain before.

    A model that takes over the codes of floats of 8 and 4 bits or of integers of 4 bits in MLX's
    own packing is given them as they are.

    Args:
        weights: The tensors of the files by name.
        model: The model.
        sanitize: Its own ``sanitize``.
        config: What mlx-lm goes on with: where nothing is packed any more, its
            ``"quantization_config"`` is taken away, by which mlx-lm would misread the rest.
        file: The configuration's file, for the messages.

    Raises:
        FormatError: As `dequantized` does, if a tool is not known, or if codes would be taken for
            numbers.
    """
    quantizer = Quantizer(config)
    _check(quantizer, weights, file)
    if quantizer.method == "bitnet":  # its layers multiply by the codes
        return sanitize(weights)
    if count := sum(name.rpartition(".")[2] in _OF_CACHE for name in weights):
        reason = f"it holds {count} scales for a key-value cache of 8 bits"
        warn_about(file, reason, "they are left out, and the cache has the type of the model")
    places: Weights = dict(tree_flatten(model.parameters()))  # type: ignore[no-untyped-call]
    taken = _taken_over(weights, places, sanitize, quantizer)
    result = sanitize(dequantized(weights, config, file, places)) if taken is None else taken
    if quantizer.is_made_plain and not any(name.endswith(".scales") for name in result):
        config["quantization_config"] = None
    _check_no_codes(result, places, file)
    return result


def dequantized(
    weights: Weights, config: Mapping[str, Any], file: Path, places: Container[str] = ()
) -> Weights:
    """Return the tensors of a checkpoint, every weight in a foreign form made plain.

    Args:
        weights: The tensors of the files by name, as ``mx.load`` returns them: FP8 is uint8.
        config: Content of config.json, the quantisation of another tool under
            ``"quantization_config"``.
        file: The configuration's file, for the messages.
        places: The parameters of the model. One that has the scale of a weight as a parameter
            of its own computes with the codes.

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
    forms, plain = _forms(weights, places), Weights()
    for form in forms:
        codes, parts = weights[form.codes], _parts(form, weights)
        try:
            plain[form.name] = _plain(codes, parts, quantizer, dtype)
        except UnfitError as error:
            raise FormatError.about(file, str(error), _REMEDY, tensor=form.codes) from None
    unused = _unused(weights) if plain or quantizer.is_made_plain else set()
    if not plain and not unused:
        return weights
    used = {name for form in forms for name in (form.codes, *form.beside.values())}
    left = {n: array for n, array in weights.items() if n not in used and n not in unused}
    return left | plain


def _check(quantizer: Quantizer, weights: Weights, file: Path) -> None:
    sizes = [(mx.issubdtype(a.dtype, mx.floating), a.nbytes) for a in weights.values()]
    coded = sum(size for is_float, size in sizes if not is_float)
    quantizer.check(file, coded, sum(size for _, size in sizes))


def _taken_over(
    weights: Weights, places: Weights, sanitize: Sanitize, quantizer: Quantizer
) -> Weights | None:
    """Return what a model makes of foreign codes that it keeps packed, None if it does not."""
    forms = _forms(weights, places)
    may = quantizer.is_taken_over and all(_is_mlx_packing(form, weights) for form in forms)
    if not forms or not may:
        return None
    try:
        result = sanitize(dict(weights))
    except Exception:  # it does not know such names
        return None
    left = {name for form in forms for name in form.beside.values()} & result.keys()
    packed = any(name.endswith(".scales") for name in result.keys() - weights.keys())
    return result if packed and not left else None


def _is_mlx_packing(form: _Form, weights: Weights) -> bool:
    """Tell whether MLX can hold the codes as they are, given scales and biases for them."""
    codes, parts = weights[form.codes], _parts(form, weights)
    if "scale_2" in parts or ("packed" in parts and codes.dtype == mx.uint8):
        return True
    if "packed" in parts:
        words = codes.shape[-1] * WORD // 4
        is_symmetric = not parts.keys() & {"zero_point", "g_idx"}
        return is_symmetric and "shape" in parts and _sides(parts)[1] == words
    scale = parts.get("scale", parts.get("scale_inv"))
    if scale is None or scale.ndim == 0 or scale.dtype != mx.uint8:
        return False
    return codes.shape[-1] == 32 * scale.shape[-1]


def _check_no_codes(weights: Weights, places: Weights, file: Path) -> None:
    """Refuse integers in the place of a weight, which mlx-lm would multiply by as they stand."""
    for name, array in weights.items():
        is_number = name not in places or mx.issubdtype(array.dtype, mx.floating)
        if is_number or not mx.issubdtype(places[name].dtype, mx.floating):
            continue
        if f"{name.rpartition('.')[0]}.scales" not in weights:
            codes = str(array.dtype).rpartition(".")[2]
            reason = f"it holds {codes} codes, and nothing says which numbers they stand for"
            raise FormatError.about(file, reason, _REMEDY, tensor=name)


def _parts(form: _Form, weights: Weights) -> Weights:
    return {leaf: weights[name] for leaf, name in form.beside.items()}


def _forms(weights: Weights, places: Container[str]) -> list[_Form]:
    """Return the weights in foreign forms, the sides of packed ones being read."""
    found = [form for name in weights if (form := _form(name, weights)) is not None]
    forms = [form for form in found if not any(part in places for part in form.beside.values())]
    mx.eval([weights[form.beside["shape"]] for form in forms if "shape" in form.beside])
    return forms


def _form(name: str, weights: Weights) -> _Form | None:
    def beside(base: str, leaves: tuple[str, ...]) -> dict[str, str]:
        return {leaf: base + leaf for leaf in leaves if base + leaf in weights}

    if name.endswith(".qweight"):
        base = name.removesuffix("qweight")
        return _Form(f"{base}weight", name, beside(base, _BESIDE_WORDS))
    if name.endswith("weight_packed"):
        base = name.removesuffix("packed")
        return _Form(base.removesuffix("_"), name, beside(base, _BESIDE_PACKED))
    parts = beside(f"{name}_", _BESIDE_CODES)
    is_scaled = bool(parts.keys() & {"scale", "scale_inv", "scales_inv"})
    return _Form(name, name, parts) if is_scaled and weights[name].itemsize == 1 else None


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
    if "scales" not in parts or quantizer.layout is None:
        raise UnfitError(f"quantised by {quantizer.method!r:.60}, it is neither GPTQ nor AWQ")
    words, scales, zeros = parts["qweight"], parts["scales"], parts.get("qzeros")
    matrices = [array for array in (words, scales, zeros) if array is not None]
    if words.itemsize != 4 or any(array.ndim != 2 for array in matrices):
        raise UnfitError("its words are not of 32 bits, or it is no matrix")
    dtype = _type(scales, dtype)
    if quantizer.layout == "awq":
        return from_awq(words, zeros, scales, dtype)
    if zeros is None:
        raise UnfitError("no 'qzeros' lie beside it")
    offset = 0 if quantizer.layout == "gptq_v2" else 1
    return from_gptq(words, zeros, scales, parts.get("g_idx"), offset, dtype)


def _from_packed_integers(
    words: mx.array, parts: Weights, quantizer: Quantizer, dtype: mx.Dtype
) -> mx.array:
    """Return the matrix of integers that compressed-tensors packed."""
    if "shape" not in parts or parts["shape"].size != 2 or words.dtype != mx.int32:
        raise UnfitError("no 'weight_shape' of 2 sides lies beside words of 32 bits")
    rows, columns = _sides(parts)
    scale, zero = parts["scale"], parts.get("zero_point")
    bits = _width(words.shape[-1], columns, quantizer.bits or {2, 4, 8})
    if zero is not None and zero.dtype == mx.int32:
        zero = unpacked_integers(zero.T, bits, rows).T
    values = unpacked_integers(words, bits, columns)
    groups = parts.get("g_idx")
    return from_integers(values, scale, zero, groups, quantizer.blocks, _type(scale, dtype))


def _sides(parts: Weights) -> tuple[int, int]:
    """Return the sides of the matrix whose integers are packed."""
    rows, columns = np.array(parts["shape"]).reshape(-1)[:2].tolist()
    return rows, columns


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
    """Return the scales of activations and of the cache, for which a plain model has no use."""
    leaves = _UNUSED | _OF_CACHE
    beside = {f"{name}_activation_scale" for name in weights}
    return {name for name in weights if name.rpartition(".")[2] in leaves or name in beside}
