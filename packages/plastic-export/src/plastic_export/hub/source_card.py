"""The card of a source: what a derived card takes over, and the file that is carried along."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, member

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.warning import warn_about
from plastic_export.folder.card_file import CARD, SOURCE_CARD, is_own_card
from plastic_export.model.library import brief

CARRIED = ("license", "license_name", "license_link", "language", "datasets", "tags")
"""What holds of a derived model as well."""


def carried_card(folder: Path) -> Path | None:
    """Return the card of a checkpoint that is carried along; None where it has none.

    An output of this package has a card of its own and that of its source: the second is it.
    """
    if (earlier := _file(folder, SOURCE_CARD)) is not None:
        return earlier
    file = _file(folder, CARD)
    return None if file is None or is_own_card(file) else file


def _file(folder: Path, name: str) -> Path | None:
    """Return a file of a folder; a link to elsewhere is none, since nothing depends on a card."""
    with suppress(FormatError):
        return folder / name if member(folder, name) else None
    return None


def carried_data(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the card of a checkpoint says that holds of what is made from it.

    Returns:
        The entries of `CARRIED` that it has, and the ``base_model`` to name: the checkpoint itself
        if it is in the Hub, else what its card names.

    Raises:
        OSError: If the card cannot be read.
    """
    said = _metadata(checkpoint.folder)
    data = {name: said[name] for name in CARRIED if said.get(name)}
    base = checkpoint.name if checkpoint.revision else said.get("base_model")
    return data | ({"base_model": base} if base else {})


def _metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata at the head of a card; nothing where there is none that can be read."""
    from huggingface_hub import metadata_load

    file = _file(folder, CARD)
    if file is None:
        return {}
    try:
        return dict(metadata_load(file) or {})
    except Exception as error:  # PyYAML's own, and what is no YAML of names and values
        reason = f"its metadata cannot be read: {brief(error)}"
        warn_about(file, reason, "none of it is carried on")
        return {}
