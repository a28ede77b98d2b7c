"""The text of a model card: metadata as the Hub reads it, then sections of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from plastic_core.files import AtomicFile

from plastic_export.folder.card_file import CARD, SOURCE_CARD, sealed_card

REPOSITORY = "OWNER/NAME"
"""What stands in a card for the repository, until it is in one."""

Relation = Literal["quantized", "finetune", "adapter"]


def write_card(folder: Path, data: Mapping[str, Any], sections: Sequence[str]) -> None:
    """Write ``README.md``: complete or not at all.

    Args:
        folder: Where.
        data: The metadata.
        sections: The text, part by part.

    Raises:
        OSError: If the system refuses.
    """
    from huggingface_hub import ModelCardData

    head = ModelCardData(**data).to_yaml()
    text = "\n\n".join([f"---\n{head}\n---", *sections]) + "\n\n"
    readable = text.encode(errors="backslashreplace").decode()  # a folder may have any name
    with AtomicFile(folder / CARD) as file:
        file.write(sealed_card(readable).encode())


def metadata(carried: Mapping[str, Any], relation: Relation, kind: str) -> dict[str, Any]:
    """Return the metadata of a card.

    Args:
        carried: What the card of the source says that still holds; see `carried_data`.
        relation: What the model is to its base.
        kind: A tag of its own: the format, or what was trained.
    """
    tags = carried.get("tags", [])
    known = [tags] if isinstance(tags, str) else [*map(str, tags)]
    own = ["mlx", "plastic-rank", kind]
    data = {**carried, "library_name": "mlx", "pipeline_tag": "text-generation"}
    if "base_model" in carried:
        data["base_model_relation"] = relation
    return data | {"tags": [*own, *(tag for tag in known if tag not in own)]}


def link(name: str, revision: str | None) -> str:
    """Return a source in Markdown: a link to its commit if it is in the Hub."""
    return f"[{name}](https://huggingface.co/{name}/tree/{revision})" if revision else f"`{name}`"


def fact_table(rows: Mapping[str, str]) -> str:
    """Return a table of two columns in Markdown."""
    lines = (f"| {name} | {value} |" for name, value in rows.items() if value)
    return "\n".join(["| what | value |", "| --- | --- |", *lines])


def code(lines: Sequence[str]) -> str:
    """Return lines of a shell in Markdown."""
    return "\n".join(["```bash", *lines, "```"])


def written_by() -> str:
    """Name the program and its version."""
    return f"plastic-export {version('plastic-export')}"


def about_source(carried: bool) -> str:
    """Say where the card of the source is, if it is carried along."""
    if not carried:
        return "The source has no card."
    return f"What its authors say of it, byte for byte: [{SOURCE_CARD}]({SOURCE_CARD})."
