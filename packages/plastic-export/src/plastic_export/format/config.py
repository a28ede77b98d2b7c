"""The configuration of a checkpoint that a plan describes, and the model file beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from plastic_core.files import copy_file, write_json

from plastic_export.checkpoint.packing import without_quantization
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import is_packed, module_path
from plastic_export.format.parts import Layout, Parts, is_bare
from plastic_export.model.load import MODEL_FILE
from plastic_export.plan.offers import Offer

VERSION = 2  # of the format that the model file reads


def write_config(folder: Path, checkpoint: Checkpoint, layout: Layout) -> None:
    """Write config.json as mlx-lm reads it and, where it names one, the model file.

    Args:
        folder: The folder that holds the checkpoint.
        checkpoint: The source.
        layout: What becomes of it.
    """
    config = quantised_config(checkpoint, layout)
    own = own_layers(checkpoint, layout)
    if own["ranks"] or own["corrected"]:
        config |= {"model_file": MODEL_FILE.name, "plastic": {"version": VERSION, **own}}
        copy_file(MODEL_FILE, folder / MODEL_FILE.name)
    write_json(folder / "config.json", config)


def quantised_config(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
    """The configuration with an entry for every module of the plan, as mlx-lm reads them.

    What is packed in the source and stays so keeps the packing that it has there.
    """
    entries: dict[str, Any] = {}
    for name, parts in layout.parts.items():
        entries |= {part.path: part.packing for part in parts.in_model if part.bits}
        is_there = name in checkpoint.tensors
        if not any(parts) and not (is_there and is_packed(name, checkpoint.tensors)):
            entries[module_path(name)] = False
    stored_anew = {module_path(name) for name, parts in layout.parts.items() if parts.in_model}
    config = without_quantization(checkpoint.config, stored_anew)
    packed = [entry for entry in entries.values() if entry]
    if not packed:
        return config
    common = Counter((e["group_size"], e["bits"]) for e in packed).most_common(1)[0][0]
    defaults = config.get("quantization") or dict(zip(("group_size", "bits"), common, strict=True))
    quantization = {**defaults, **entries}
    return config | {"quantization": quantization, "quantization_config": quantization}


def own_layers(checkpoint: Checkpoint, layout: Layout) -> dict[str, dict[str, Any]]:
    """What the model file builds instead of linear layers: the source's and those of the plan."""
    ours = checkpoint.config.get("model_file") == MODEL_FILE.name
    before = checkpoint.config["plastic"] if ours else {}
    ranks, corrected = dict(before.get("ranks", {})), dict(before.get("corrected", {}))
    for name, offer in layout.chosen.items():
        if layout.format == "corrected" and is_bare(offer):
            ranks[module_path(name)] = offer.rank
        elif layout.format == "corrected" and offer.rank:
            corrected[module_path(name)] = _corrected(offer, layout.parts[name])
    return {"ranks": ranks, "corrected": corrected}


def _corrected(offer: Offer, parts: Parts) -> dict[str, Any]:
    """The rank and the packing of a corrected layer: groups along the outputs, then the inputs."""
    return {
        "rank": offer.rank,
        "bits": offer.factor_bits,
        "group_size": list(parts.factor_group_sizes),
        "backbone": offer.bits is not None,
    }
