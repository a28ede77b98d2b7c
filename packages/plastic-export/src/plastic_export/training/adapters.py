"""The results of training: an adapter of one rank for stock mlx-lm, and one of exact ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core import RankLayer
from plastic_core.files import (
    FormatError,
    array_bytes,
    dtype_name,
    export_safetensors,
    read_arrays,
    read_json,
    write_json,
)
from plastic_runtime import ByteCount

from plastic_export.folder.adapter_files import CONFIG, FILE, FOLDER

PEFT = "peft"
PEFT_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HEADER = 8 + len('{"__metadata__":{"format":"mlx"}}') + 7  # its length, its own, its padding


def count_adapter_bytes(layers: Mapping[str, RankLayer], largest: int) -> ByteCount:
    """Return the bytes that the adapters of these layers take as files, at any ranks.

    Args:
        layers: The layers by their path in mlx-lm's model.
        largest: Bytes that no adapter goes beyond: a header writes the place of every tensor.

    Returns:
        Ranks to bytes: those of the file that `write_adapter` makes, with one rank for all, or a
        few tens of bytes per layer more. The file of `write_peft`, which pads nothing and has
        longer names, takes no more either.
    """
    return ByteCount(
        components={path: _component_bytes(layer) for path, layer in layers.items()},
        layers={path: _name_bytes(path, layer, largest) for path, layer in layers.items()},
        fixed=_HEADER,
        one_rank=True,
    )


def _component_bytes(layer: RankLayer) -> int:
    """Return the bytes of one row of ``A`` and one column of ``B``."""
    return sum(layer.shape) * layer.U.dtype.size


def _name_bytes(path: str, layer: RankLayer, largest: int) -> int:
    """Return the bytes that the two tensors of a layer take in the longer header."""
    entry = {
        "dtype": dtype_name(layer.U),
        "shape": [max(layer.shape), max(layer.shape)],
        "data_offsets": [largest, largest],
    }
    names = (f"{_PREFIX}{path}.lora_{side}.weight" for side in "AB")
    text = json.dumps(dict.fromkeys(names, entry), ensure_ascii=False, separators=(",", ":"))
    return len(text.encode()) - 1  # its braces are one too many, and a comma goes before


def write_adapter(folder: Path, layers: Mapping[str, RankLayer]) -> Path:
    """Write the plastic parts as an adapter that ``mlx_lm`` loads over the base.

    mlx-lm takes one rank for all, so smaller ones are filled up with zeros, which changes
    nothing. Layers of rank 0 are not in it.

    Args:
        folder: Where the folder ``adapters`` is put.
        layers: The layers by their path in mlx-lm's model; at least one component among them.

    Returns:
        The folder, for ``--adapter-path``.

    Raises:
        ValueError: If every rank is 0.
        OSError: If the system refuses.
    """
    awake = _awake(layers)
    rank = max(layer.rank for layer in awake.values())
    tensors = {}
    for path, layer in awake.items():
        A, B = _pair(layer)
        missing = rank - layer.rank
        tensors[f"{path}.lora_a"] = mx.pad(A.T, [(0, 0), (0, missing)])
        tensors[f"{path}.lora_b"] = mx.pad(B.T, [(0, missing), (0, 0)])
    config = {
        "fine_tune_type": "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": list(awake)},
    }
    return _write(folder / FOLDER, FILE, tensors, config, "mlx")


def write_peft(folder: Path, layers: Mapping[str, RankLayer], base: str) -> Path:
    """Write the plastic parts with the rank that each has, in the form of PEFT.

    ``rank_pattern`` names every rank, and ``alpha_pattern`` the same numbers, so that each layer
    has the scale 1. ``lora_alpha`` is 0, which llama.cpp reads as 1 for every tensor, whatever
    its rank, after ``convert_lora_to_gguf.py``.

    Args:
        folder: Where the folder ``peft`` is put.
        layers: The layers, see `write_adapter`.
        base: Name of the base checkpoint.

    Returns:
        The folder.

    Raises:
        ValueError: If every rank is 0.
        OSError: If the system refuses.
    """
    awake = _awake(layers)
    ranks = {path: layer.rank for path, layer in awake.items()}
    tensors = {}
    for path, layer in awake.items():
        A, B = _pair(layer)
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = A
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = B
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": max(ranks.values()),
        "rank_pattern": ranks,
        "lora_alpha": 0,
        "alpha_pattern": ranks,
        "target_modules": list(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }
    return _write(folder / PEFT, PEFT_FILE, tensors, config, "pt")


def _pair(layer: RankLayer) -> tuple[mx.array, mx.array]:
    """Return ``A (r, in)`` and ``B (out, r)``, whose product is the plastic part."""
    return layer.S[:, None] * layer.Vh, layer.U


def _awake(layers: Mapping[str, RankLayer]) -> dict[str, RankLayer]:
    awake = {path: layer for path, layer in layers.items() if layer.rank}
    if not awake:
        raise ValueError("`layers` must have a component awake, and every rank is 0.")
    return awake


def _write(
    folder: Path, file: str, tensors: dict[str, mx.array], config: dict[str, Any], format: str
) -> Path:
    folder.mkdir(exist_ok=True)
    _check_own(folder / file, _is_adapter(folder / file, tensors))
    _check_own(folder / CONFIG, _is_config(folder / CONFIG, config))
    export_safetensors(folder / file, tensors, metadata={"format": format})
    write_json(folder / CONFIG, config)
    return folder


def _check_own(file: Path, is_own: bool) -> None:
    """Refuse to replace what was changed since, as by mlx-lm's own trainer."""
    if file.exists() and not is_own:
        reason = "it is not what this run wrote, and in the way of its adapter"
        raise FormatError.about(file, reason, "move it elsewhere, then start the same command")


def _is_adapter(file: Path, tensors: Mapping[str, mx.array]) -> bool:
    """Tell whether a file holds exactly these tensors."""
    try:
        there, _ = read_arrays(file)
    except (FormatError, FileNotFoundError):
        return False
    return there.keys() == tensors.keys() and all(
        array.dtype == tensors[name].dtype
        and array.shape == tensors[name].shape
        and array_bytes(array).tobytes() == array_bytes(tensors[name]).tobytes()
        for name, array in there.items()
    )


def _is_config(file: Path, config: dict[str, Any]) -> bool:
    """Tell whether a file holds exactly this configuration."""
    try:
        return bool(read_json(file) == config)
    except (FormatError, FileNotFoundError):
        return False
