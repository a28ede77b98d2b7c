"""What an export is asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from plastic_runtime import Track, untracked

T = TypeVar("T")

Piece = Literal["whole", "base", "adapter"]
"""What of a base and its adapter is written: both as one, or one of them."""


@dataclass(frozen=True)
class ExportRequest:
    """One export.

    Attributes:
        source: A folder (checkpoint, output, run or adapter), or a Hub id.
        dest: The file or folder to write.
        type: Type of the weights; None for that in which they are stored.
        base: The checkpoint that an adapter belongs to; None for the one that it names.
        piece: What is written; None for what fits the source: the adapter of a run, the whole
            of all else.
        revision: Commit, tag or branch of a Hub id.
        track: Wraps the long loops.
        uniform: One rank for all layers of an adapter in the form of PEFT.
    """

    source: str
    dest: Path
    type: str | None = None
    base: str | None = None
    piece: Piece | None = None
    revision: str | None = None
    track: Track = untracked
    uniform: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        dest: The file or folder.
        target: The target, such as ``"gguf"``.
        nbytes: Bytes of what was written.
        types: Number of tensors by type.
        errors: Worst relative Frobenius error of the tensors that were rounded anew, by the kind
            of tensor, such as ``"attn_q"``.
        notes: What is to be known of it, a line each.
        how_to_run: The command that runs it.

    Examples:
        >>> done = export("SRC", "MERGED", to="mlx", type="f32")
        >>> done.target, done.types, done.errors
        ('mlx', {'F32': 21}, {})
    """

    dest: Path
    target: str
    nbytes: int
    types: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    how_to_run: str = ""


def checked_type(type: str | None, known: Mapping[str, T]) -> T | None:
    """Return what a target means by the name of a type; None for None.

    Raises:
        ValueError: If the target has no such type; the message names those that it has.
    """
    if type is not None and type.lower() not in known:
        raise ValueError(f"`type` must be one of {', '.join(known)}, got {type!r}.")
    return None if type is None else known[type.lower()]
