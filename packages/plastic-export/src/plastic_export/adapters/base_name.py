"""What an adapter calls its base: a name that leads to the base and to nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from plastic_core.files import read_json
from plastic_runtime.dialling import MANIFEST

from plastic_export.checkpoint.hub import is_repository
from plastic_export.checkpoint.reader import Checkpoint


class BaseName(NamedTuple):
    """The name of a base as PEFT looks for it.

    Attributes:
        name: Absolute path of a folder, or the id of a repository of the Hub. A bare name of a
            folder would be looked for in the Hub, where another model may have it.
        revision: Commit, for an id.
        note: What a user has to know about it; empty where there is nothing.
    """

    name: str
    revision: str | None
    note: str = ""


def name_of_base(checkpoint: Checkpoint) -> BaseName:
    """Return what an adapter over ``checkpoint`` calls its base.

    PEFT loads the base with transformers, which reads no checkpoint that MLX quantised. So the
    dense original of one is named where its ``plastic.json`` tells the id of it.

    Raises:
        FormatError: If ``plastic.json`` is damaged.
    """
    own = BaseName(
        checkpoint.name if checkpoint.revision else str(checkpoint.folder.resolve()),
        checkpoint.revision,
    )
    if checkpoint.quantization is None:
        return own
    if original := _original(checkpoint.folder):
        note = f"over {own.name}, which MLX quantised; named for PEFT: its dense original"
        return original._replace(note=f"{note}, {original.name}")
    note = (
        f"PEFT cannot load {own.name}, which MLX quantised: it needs the dense original, whose "
        "name belongs into base_model_name_or_path"
    )
    return own._replace(note=note)


def _original(folder: Path) -> BaseName | None:
    """Return the dense source in the Hub of a checkpoint that this package wrote, if it was one."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    source: Any = read_json(manifest).get("source")
    if not isinstance(source, Mapping) or not is_repository(str(source.get("name"))):
        return None
    if any(str(name).endswith(".scales") for name in source.get("tensors") or ()):
        return None
    return BaseName(str(source["name"]), source.get("revision"))
