"""Weights in MLX's quantised form: the way each is packed, and the matrix it stands for."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, TensorInfo

_REMEDY = "correct it, or convert the original checkpoint again"


class _Mode(NamedTuple):
    """Bits and group sizes of a mode, the default first (``mlx.core.quantize``)."""

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]


_MODES = {
    "affine": _Mode((4, 1, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": _Mode((4,), (32,)),
    "mxfp8": _Mode((8,), (32,)),
    "nvfp4": _Mode((4,), (16,)),
}


class Packing(NamedTuple):
    """The packing of a weight: bits per entry, entries per scale, and the mode's name."""

    bits: int
    group_size: int
    mode: str


def quantization_of(config: Mapping[str, Any], file: Path) -> dict[str, Any] | None:
    """Return the quantisation of an MLX checkpoint, None where there is none.

    Args:
        config: The checkpoint's configuration.
        file: Its file, for the message.

    Returns:
        ``config["quantization"]``: the packing of all layers, and by the path of a layer
        its own. What another tool quantised is `Quantizer`'s.

    Raises:
        FormatError: If it is malformed.
    """
    quantization = config.get("quantization")
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        raise FormatError.about(file, "'quantization' is not an object", _REMEDY)
    packing_of("", quantization, file)
    return quantization


def packing_of(path: str, quantization: Mapping[str, Any], file: Path) -> Packing:
    """Return how the weight of the layer at ``path`` is packed.

    Args:
        path: Path of the layer in the model.
        quantization: What `quantization_of` returned.
        file: The configuration's file, for the message.

    Returns:
        The layer's own packing where it has one, else that of all layers.

    Raises:
        FormatError: If MLX has no such packing.
    """
    special = quantization.get(path)
    settings = special if isinstance(special, dict) else quantization
    mode = settings.get("mode", "affine")
    known = _MODES.get(mode) if isinstance(mode, str) else None
    bits = settings.get("bits", known and known.bits[0])
    group_size = settings.get("group_size", known and known.group_sizes[0])
    if known is None or bits not in known.bits or group_size not in known.group_sizes:
        asked = f"mode {mode!r}, bits {bits!r}, group_size {group_size!r}"
        where = f" of {path!r}" if settings is special else ""
        raise FormatError.about(file, f"MLX has no such quantization{where}: {asked}", _REMEDY)
    return Packing(bits, group_size, mode)


def unpacked_shape(weight: TensorInfo, scales: TensorInfo, packing: Packing) -> tuple[int, ...]:
    """Return the shape of the weight that a packed one stands for.

    Args:
        weight: The packed weight, 32 bits per entry.
        scales: Its scales.
        packing: How it is packed.

    Returns:
        The shape, whose last dimension is counted in entries.

    Raises:
        FormatError: If the two do not fit each other under this packing.
    """
    *rows, words = weight.shape or (0,)
    columns = words * 32 // packing.bits
    expected = (*rows, columns // packing.group_size)
    exact = words * 32 == columns * packing.bits and columns % packing.group_size == 0
    if not exact or scales.shape != expected:
        reason = (
            f"its shape {weight.shape} and that of its scales {scales.shape} do not fit"
            f" {packing.bits} bits in groups of {packing.group_size}"
        )
        remedy = "correct 'quantization' in config.json, or convert the original again"
        raise FormatError.about(weight.file, reason, remedy, tensor=weight.name)
    return (*rows, columns)


def unpacked(
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    packing: Packing,
    *,
    global_scale: mx.array | None = None,
) -> NDArray[np.float32]:
    """Return the weight that a packed one stands for.

    Args:
        weight: Shape ``(..., in * bits / 32)``, uint32.
        scales: Shape ``(..., in / group_size)``.
        biases: Shaped like ``scales``; None for the modes that have none.
        packing: How it is packed.
        global_scale: The one scale of the whole matrix that "nvfp4" may have.

    Returns:
        Shape ``(..., in)``. Computed in float32 from the stored scales, so nothing is
        rounded to their own precision.
    """
    dense = mx.dequantize(
        weight,
        scales if biases is None else scales.astype(mx.float32),
        None if biases is None else biases.astype(mx.float32),
        group_size=packing.group_size,
        bits=packing.bits,
        mode=packing.mode,
        global_scale=global_scale,
        dtype=mx.float32,
    )
    mx.eval(dense)
    return np.array(dense, copy=False)


def without_quantization(config: dict[str, Any], paths: Container[str]) -> dict[str, Any]:
    """Return the configuration without the per-layer quantisation entries of these layers."""
    config = dict(config)
    for key in ("quantization", "quantization_config"):
        if isinstance(config.get(key), dict):
            config[key] = {k: v for k, v in config[key].items() if k not in paths}
    return config


def without_other_tools(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration without what another tool than MLX says of its quantisation.

    An empty entry stays, or mlx-lm would look for one in `hf_quant_config.json`.
    """
    said: dict[str, Any] = {}
    if config.get("quantization_config"):
        said["quantization_config"] = {}
    text = config.get("text_config")
    if isinstance(text, dict):
        said["text_config"] = {k: v for k, v in text.items() if k != "quantization_config"}
    return {**config, **said}


_SINCE = {3: "0.21", 6: "0.21", 5: "0.26"}


def least_mlx(widths: Iterable[int]) -> str | None:
    """Return the least version of MLX that packs in these bits; None where any has them."""
    return max((_SINCE[bits] for bits in widths if bits in _SINCE), default=None)
