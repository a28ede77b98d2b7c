"""The configuration of a compressed checkpoint, and the model file beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from plastic_core.files import copy_file, write_json

from plastic_export.checkpoint.packing import without_quantization
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import is_packed, module_path
from plastic_export.format.layout import Contents, stored_anew
from plastic_export.model.load import MODEL_FILE

VERSION = 2  # of the format that the model file reads


def write_config(folder: Path, checkpoint: Checkpoint, contents: Contents) -> None:
    """Write config.json as mlx-lm reads it and, where it names one, the model file.

    Args:
        folder: The folder that holds the checkpoint.
        checkpoint: The source.
        contents: What becomes of its matrices.
    """
    config = quantized_config(checkpoint, contents)
    own = own_layers(checkpoint, contents)
    if any(own.values()):
        config |= {"model_file": MODEL_FILE.name, "plastic": {"version": VERSION, **own}}
        copy_file(MODEL_FILE, folder / MODEL_FILE.name)
    write_json(folder / "config.json", config)


def quantized_config(checkpoint: Checkpoint, contents: Contents) -> dict[str, Any]:
    """The configuration with an entry for every module that was chosen, as mlx-lm reads them.

    What is packed in the source and stays so keeps the packing that it has there.
    """
    entries: dict[str, Any] = {}
    for name, parts in contents.parts.items():
        entries |= {part.path: part.packing for part in parts.in_model if part.bits}
        is_there = name in checkpoint.tensors
        if not parts.present and not (is_there and is_packed(name, checkpoint.tensors)):
            entries[module_path(name)] = False
    config = without_quantization(checkpoint.config, stored_anew(contents))
    packed = [entry for entry in entries.values() if entry]
    if not packed:
        return config
    common = Counter((e["group_size"], e["bits"]) for e in packed).most_common(1)[0][0]
    defaults = config.get("quantization") or dict(zip(("group_size", "bits"), common, strict=True))
    quantization = {**defaults, **entries}
    return config | {"quantization": quantization, "quantization_config": quantization}


def own_layers(checkpoint: Checkpoint, contents: Contents) -> dict[str, dict[str, Any]]:
    """Return what the model file builds instead of linear layers: the source's and new ones."""
    ours = checkpoint.config.get("model_file") == MODEL_FILE.name
    before = checkpoint.config["plastic"] if ours else {}
    own = {kind: dict(before.get(kind, {})) for kind in ("ranks", "corrected")}
    for name, parts in contents.parts.items():
        entries = contents.format.own_layers(contents.chosen[name], parts)
        for kind, entry in entries.items():
            own[kind][module_path(name)] = entry
    return own
