"""The configuration of a compressed checkpoint, and the model file beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from plastic_core.files import copy_file, write_json

from plastic_export.checkpoint.architecture import hidden, revealed
from plastic_export.checkpoint.packing import (
    packing_of,
    without_other_tools,
    without_quantization,
)
from plastic_export.checkpoint.reader import CONFIG, QUANTIZATION, Checkpoint
from plastic_export.checkpoint.tensors import is_packed, module_path
from plastic_export.format.layout import Contents, Layout, stored_anew
from plastic_export.model.load import MODEL_FILE
from plastic_export.source.source import Source

_OWN = ("ranks", "corrected")
VERSION = 3  # of the format that the model file reads


def write_config(folder: Path, source: Source, layout: Layout) -> None:
    """Write config.json as mlx-lm reads it and, where it names one, the model file.

    Args:
        folder: The folder that holds the checkpoint.
        source: The source.
        layout: Where every tensor goes.
    """
    config = output_config(source, layout)
    if config.get("model_file") == MODEL_FILE.name:
        copy_file(MODEL_FILE, folder / MODEL_FILE.name)
    write_json(folder / "config.json", config)


def output_config(source: Source, layout: Layout) -> dict[str, Any]:
    """Return config.json of an output, as mlx-lm reads it."""
    config, own = quantized_config(source, layout), own_layers(source.checkpoint, layout.contents)
    return _with_own(config, own)


def quantized_config(source: Source, layout: Layout) -> dict[str, Any]:
    """The configuration with an entry for every module that was chosen, as mlx-lm reads them.

    What is packed in the source and stays so keeps the packing that it has there. What another tool
    than MLX says of its own packing goes when every tensor is written as the loaded model holds it.
    """
    entries, contents = dict[str, Any](), layout.contents
    for name, parts in contents.parts.items():
        entries |= {part.path: part.packing for part in parts.in_model if part.bits}
        if not parts.present and not _is_packed(source, name):
            entries[module_path(name)] = False
    anew = stored_anew(contents)
    entries |= _kept_packings(source, anew)
    config = source.checkpoint.config
    is_plain = layout.arrangement.is_whole or not source.checkpoint.holds_codes
    if is_plain and source.checkpoint.quantization is None:
        config = without_other_tools(config)
        if (source.checkpoint.folder / QUANTIZATION).exists():  # which mlx-lm reads else
            config |= {"quantization_config": None}
    config = without_quantization(config, anew)
    packed = [entry for entry in entries.values() if entry]
    if not packed:
        return config
    common = Counter((e["group_size"], e["bits"]) for e in packed).most_common(1)[0][0]
    defaults = config.get("quantization") or dict(zip(("group_size", "bits"), common, strict=True))
    quantization = {**defaults, **entries}
    return config | {"quantization": quantization, "quantization_config": quantization}


def _is_packed(source: Source, name: str) -> bool:
    """Tell whether a weight is packed in the source."""
    tensors = source.checkpoint.tensors
    return module_path(name) in source.packings or (name in tensors and is_packed(name, tensors))


def _kept_packings(source: Source, anew: Container[str]) -> dict[str, Any]:
    """Return the packings of what stays packed, where config.json does not say them itself."""
    file, stated = source.checkpoint.folder / CONFIG, source.checkpoint.quantization
    kept = {path: packing for path, packing in source.packings.items() if path not in anew}
    return {
        path: packing._asdict()
        for path, packing in kept.items()
        if stated is None or packing_of(path, stated, file) != packing
    }


def restored_config(config: Mapping[str, Any], contents: Contents) -> dict[str, Any]:
    """Return config.json of an output once its matrices are dense again."""
    dense = {module_path(name) for name in contents.anew}
    config = revealed(config)
    before = config.get("plastic", {})
    own = {
        kind: {path: entry for path, entry in before.get(kind, {}).items() if path not in dense}
        for kind in _OWN
    }
    rest = {k: v for k, v in config.items() if k not in ("model_file", "plastic")}
    return _with_own(rest, own)


def turned_config(config: Mapping[str, Any], before: Contents, after: Contents) -> dict[str, Any]:
    """Return config.json of an output whose matrices are stored at other ranks.

    Args:
        config: What it was, its architecture by its stock name.
        before: What became of the matrices then.
        after: What becomes of them now.
    """
    config = dict(config)
    if stated := config.get("quantization"):
        quantization = _turned_packings(stated, before, after)
        config |= {"quantization": quantization, "quantization_config": quantization}
    turned = {module_path(name) for name in before.anew}
    own = {
        kind: {path: entry for path, entry in known.items() if path not in turned}
        for kind, known in _own_before(config).items()
    }
    rest = {k: v for k, v in config.items() if k not in ("model_file", "plastic")}
    return _with_own(rest, _own_with(own, after))


def _turned_packings(
    stated: Mapping[str, Any], before: Contents, after: Contents
) -> dict[str, Any]:
    """Return the quantisation of an output, module by module in the order of `output_config`."""
    gone = {part.path for parts in before.parts.values() for part in parts.in_model if part.bits}
    settings = {k: v for k, v in stated.items() if not isinstance(v, dict | bool)}
    entries = dict[str, Any]()
    for name, parts in after.parts.items():
        path = module_path(name)
        entries |= {part.path: part.packing for part in parts.in_model if part.bits}
        entries |= {path: stated[path]} if not parts.present and path in stated else {}
    others = {k: v for k, v in stated.items() if k not in settings and k not in gone}
    return {**settings, **entries, **others}


def _own_before(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the layers that the model file of a checkpoint builds, by kind."""
    ours = config.get("model_file") == MODEL_FILE.name
    before = config["plastic"] if ours else {}
    return {kind: dict(before.get(kind, {})) for kind in _OWN}


def _own_with(own: dict[str, dict[str, Any]], contents: Contents) -> dict[str, dict[str, Any]]:
    """Add the layers that a format stores otherwise."""
    for name, parts in contents.parts.items():
        entries = contents.format.own_layers(contents.chosen[name], parts)
        for kind, entry in entries.items():
            own[kind][module_path(name)] = entry
    return own


def _with_own(config: dict[str, Any], own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the configuration with the layers that the model file builds, if there are any."""
    if not any(own.values()):
        return config
    named = {"model_file": MODEL_FILE.name, "plastic": {"version": VERSION, **own}}
    return hidden(config | named)


def own_layers(checkpoint: Checkpoint, contents: Contents) -> dict[str, dict[str, Any]]:
    """Return what the model file builds instead of linear layers: the source's and new ones."""
    return _own_with(_own_before(checkpoint.config), contents)
