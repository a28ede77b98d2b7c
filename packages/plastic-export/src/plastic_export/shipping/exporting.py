"""``export``: a checkpoint, an output, a run or an adapter in the form of another program."""

from __future__ import annotations

import os
from pathlib import Path

from plastic_runtime import Track, untracked

from plastic_export.gguf.gguf_file import check_dest
from plastic_export.shipping.request import Exported, ExportRequest, Piece
from plastic_export.shipping.table import TARGETS


def export(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    to: str,
    type: str | None = None,
    base: str | os.PathLike[str] | None = None,
    piece: Piece | None = None,
    revision: str | None = None,
    uniform: bool = False,
    track: Track = untracked,
) -> Exported:
    """Write a checkpoint, an output, a run or an adapter in the form that another program loads.

    Factors, corrections and adapters are multiplied out on the way, one matrix at a time.

    Args:
        source: Its folder, or a Hub id.
        dest: The file or folder to write; must not exist.
        to: The target: ``"gguf"``, ``"dense"``, ``"mlx"`` or ``"peft"``.
        type: Type of the weights: ``"f32"``, ``"f16"``, ``"bf16"``, for GGUF also ``"q8_0"``; None
            for what is stored.
        base: The checkpoint that an adapter belongs to; None for the one that it names.
        piece: ``"whole"``, ``"base"`` or ``"adapter"``: what of a base and its adapter is written;
            None for the adapter of a run where the target has adapters, else the whole.
        revision: Commit, tag or branch of a Hub id.
        uniform: One rank for all layers of an adapter for PEFT, smaller ones filled up with zeros,
            for programs that do not read ``alpha_pattern`` (vLLM, SGLang).
        track: Wraps the long loops.

    Returns:
        What was written, with its errors and the command that runs it.

    Raises:
        FormatError: If the source is damaged or of a kind that the target has no place for, or
            the place is taken.
        ValueError: If a setting is unknown.
        ModuleNotFoundError: If an extra is missing; it is named.
        OSError: If the system refuses. Nothing is left behind.

    Examples:
        >>> export("FACTORED", "MERGED", to="mlx").types
        {'BF16': 21}
    """
    if uniform and to != "peft":
        raise ValueError(f"`uniform` must be False unless `to` is 'peft', got {to!r}.")
    if to not in TARGETS:
        raise ValueError(f"`to` must be one of {', '.join(TARGETS)}, got {to!r}.")
    check_dest(Path(dest))
    request = ExportRequest(
        os.fspath(source),
        Path(dest),
        type,
        None if base is None else os.fspath(base),
        piece,
        revision,
        track,
        uniform,
    )
    return TARGETS[to].write(request)
