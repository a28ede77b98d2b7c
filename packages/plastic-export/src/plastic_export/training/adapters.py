"""The results of training: the plastic parts as an adapter, in the forms that clients load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plastic_core import RankLayer
from plastic_runtime import ByteCount

from plastic_export.adapters.adapter import Adapter, LoraPair
from plastic_export.adapters.base_name import BaseName
from plastic_export.adapters.mlx_form import mlx_files
from plastic_export.adapters.peft_form import peft_files
from plastic_export.adapters.sizes import count_adapter_bytes
from plastic_export.folder.adapter_files import FOLDER, PEFT_FOLDER


def count_run_bytes(layers: Mapping[str, RankLayer], largest: int) -> ByteCount:
    """Return the bytes that the larger adapter of a run takes, at any ranks.

    Args:
        layers: The layers by their path in mlx-lm's model.
        largest: Bytes that no adapter goes beyond.
    """
    sides = {path: (layer.shape, layer.U.dtype) for path, layer in layers.items()}
    return count_adapter_bytes(sides, largest)


def write_adapters(out: Path, layers: Mapping[str, RankLayer], base: BaseName) -> tuple[Path, Path]:
    """Write the plastic parts for mlx-lm and for PEFT, both with one rank for all.

    That costs PEFT's form the zeros that fill smaller ranks up, and is right in every client:
    vLLM and SGLang know no ranks of single layers.

    Args:
        out: Where the folders ``adapters`` and ``peft`` are put.
        layers: The layers by their path in mlx-lm's model; at least one component among them.
        base: What the base is called.

    Returns:
        Both folders.

    Raises:
        ValueError: If every rank is 0.
        FormatError: If an adapter there is not what this run wrote.
        OSError: If the system refuses.
    """
    pairs = {path: LoraPair(layer.S[:, None] * layer.Vh, layer.U) for path, layer in layers.items()}
    adapter = Adapter(pairs, base.name, base.revision)
    return (
        mlx_files(adapter).rewrite(out / FOLDER),
        peft_files(adapter, uniform=True).rewrite(out / PEFT_FOLDER),
    )
