"""The targets of ``plastic export``: what a source can be written as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from plastic_export.shipping.adapter_folder import export_for_mlx, export_peft
from plastic_export.shipping.dense_folder import export_dense
from plastic_export.shipping.gguf_target import export_gguf
from plastic_export.shipping.request import Exported, ExportRequest


@dataclass(frozen=True)
class Target:
    """One form that a source can be written in.

    Attributes:
        write: Writes it, whole or not at all.
        about: What the help says of it.
    """

    write: Callable[[ExportRequest], Exported]
    about: str


TARGETS: Mapping[str, Target] = {
    "gguf": Target(export_gguf, "one file for llama.cpp"),
    "mlx": Target(export_for_mlx, "for stock mlx-lm, a dense folder or an adapter"),
    "dense": Target(export_dense, "a dense folder for transformers and what reads its form"),
    "peft": Target(export_peft, "an adapter for PEFT"),
}
"""Every target, by the name that users type."""
