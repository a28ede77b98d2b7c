"""Weights that other tools than MLX quantised, made the plain matrices that they stand for.

They are found by the names and types of their tensors, since a configuration leaves layers out
in ways of its own: what has no scale beside it is plain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from plastic_core.files import FormatError

from plastic_export.model.foreign_forms import UnfitError, scaled_float8, stated_type

Weights = dict[str, mx.array]

_SCALE = re.compile(r"(?P<weight>.+)_(scale|scales?_inv)")
_UNUSED = {
    "input_scale", "input_scale_ub", "activation_scale", "output_scale",
    "q_scale", "k_scale", "v_scale", "kv_scale",
}  # fmt: skip
"""Scales of activations and of the key-value cache, for which a plain model has no use."""


class _Form(NamedTuple):
    """A weight made plain, not computed yet, its name, and the tensors that it was stored in."""

    name: str
    parts: tuple[str, ...]
    weight: mx.array


def dequantized(weights: Weights, config: Mapping[str, Any], file: Path) -> Weights:
    """Return the tensors of a checkpoint, every weight in a foreign form made plain.

    Args:
        weights: The tensors of the files by name, as ``mx.load`` returns them: FP8 is uint8.
        config: Content of config.json, the quantisation of another tool under
            ``"quantization_config"``.
        file: The configuration's file, for the messages.

    Returns:
        ``weights`` itself where nothing in it is of a foreign form. Otherwise a new dictionary:
        the matrices under their plain names, in the type that the configuration states, none
        computed yet; without the scales of weights, activations and key-value cache; the rest as
        it is.

    Raises:
        FormatError: If a scale does not fit its weight.
    """
    forms = list(_forms(weights, config, file))
    if not forms:
        return weights
    dropped = {part for form in forms for part in form.parts} | _unused(weights)
    plain = {name: array for name, array in weights.items() if name not in dropped}
    return plain | {form.name: form.weight for form in forms}


def _forms(weights: Weights, config: Mapping[str, Any], file: Path) -> Iterator[_Form]:
    settings = config.get("quantization_config") or {}
    block, dtype = settings.get("weight_block_size"), stated_type(config)
    for scale in weights:
        match = _SCALE.fullmatch(scale)
        name = match["weight"] if match else scale
        if match is None or name not in weights or weights[name].dtype != mx.uint8:
            continue
        try:
            weight = scaled_float8(weights[name], weights[scale], block, dtype)
        except UnfitError as error:
            remedy = "correct 'quantization_config', or download the checkpoint again"
            raise FormatError.about(file, str(error), remedy, tensor=name) from None
        yield _Form(name, (name, scale), weight)


def _unused(weights: Weights) -> set[str]:
    """Return the names of the scales in ``_UNUSED``, those of expert weights included."""
    return {
        name
        for name in weights
        if name.rpartition(".")[2] in _UNUSED
        or (
            name.endswith("_activation_scale") and name.removesuffix("_activation_scale") in weights
        )
    }
