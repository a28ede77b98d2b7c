"""mlx-lm's form of an adapter: one rank and one scale for all layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core.files import FormatError, read_arrays, read_json

from plastic_export.adapters.adapter import Adapter
from plastic_export.adapters.files import AdapterFiles
from plastic_export.adapters.one_scale import with_one_scale
from plastic_export.adapters.pairs import paired, refuse_others
from plastic_export.folder.adapter_files import CONFIG, FILE

_SIDES = {"lora_a": "A", "lora_b": "B"}
_OTHERS = {"m": "the magnitudes of DoRA"}


def read_mlx(folder: Path) -> Adapter:
    """Read an adapter that ``mlx_lm.lora`` or this package wrote.

    Zeros that fill a layer up to the one rank of the file are left out.

    Raises:
        FormatError: If it is no LoRA, or damaged.
        OSError: If it cannot be read.
    """
    config, file = read_json(folder / CONFIG), folder / FILE
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        reason = f"its fine_tune_type is {kind!r}, which is no sum of a base and factors"
        raise FormatError.about(folder / CONFIG, reason, "train it as 'lora'")
    scale = _scale(folder, config)
    sides: dict[str, dict[str, mx.array]] = {"A": {}, "B": {}}
    others = {}
    for name, array in read_arrays(file)[0].items():
        path, _, last = name.rpartition(".")
        if last in _SIDES:
            sides[_SIDES[last]][path] = array.T if array.ndim == 2 else array
        else:
            others[name] = _OTHERS.get(last, "a weight of its own")
    refuse_others(file, others)
    base = config.get("model")
    return Adapter(
        paired(file, sides, lambda path, rank: scale),
        base=base if isinstance(base, str) else None,
        revision=config.get("revision"),
        form="mlx",
    )


def mlx_files(adapter: Adapter) -> AdapterFiles:
    """Return an adapter as mlx-lm loads it, smaller ranks filled up with zeros.

    Raises:
        ValueError: If every rank is 0.
    """
    layers, scale = with_one_scale(adapter.awake().layers)
    rank = max(pair.rank for pair in layers.values())
    tensors = {}
    for path, pair in layers.items():
        full = pair.padded(rank)
        tensors[f"{path}.lora_a"] = full.A.T
        tensors[f"{path}.lora_b"] = full.B.T
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": list(layers)}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    if adapter.base is not None:
        config |= {"model": adapter.base, "revision": adapter.revision}
    return AdapterFiles(FILE, tensors, config, "mlx")


def _scale(folder: Path, config: dict[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        reason = f"lora_parameters has no number as scale, but {scale!r}"
        raise FormatError.about(folder / CONFIG, reason, "put back the file that mlx-lm wrote")
    return float(scale)
