"""The target ``gguf``: one file for llama.cpp, a model or an adapter."""

from __future__ import annotations

import shlex

from plastic_export.gguf.encoding import TYPES
from plastic_export.gguf.model_file import WrittenModel, write_model
from plastic_export.merging.over_base import open_over_base
from plastic_export.shipping.request import Exported, ExportRequest, checked_type


def export_gguf(request: ExportRequest) -> Exported:
    """Write a GGUF file: a model with its tokenizer, or an adapter for over one.

    Args:
        request: What is wanted. ``type`` is one of `TYPES`; None for what is stored.

    Returns:
        What was written.

    Raises:
        FormatError: If the source is damaged, its architecture or tokenizer is not one that is
            written here, or the place is taken.
        ModuleNotFoundError: If the extra is missing.
        ValueError: If the type is unknown.
        OSError: If the system refuses. Nothing is left behind.
    """
    wanted = checked_type(request.type, TYPES)
    opened = open_over_base(request.source, base=request.base, revision=request.revision)
    with opened as source:
        whole = request.piece != "base"
        written = write_model(source, request.dest, wanted, with_adapter=whole, track=request.track)
    return Exported(
        request.dest,
        "gguf",
        request.dest.stat().st_size,
        dict(written.types),
        written.errors,
        _notes(written),
        shlex.join(["llama-completion", "-no-cnv", "-m", str(request.dest), "-p", "Once upon"]),
    )


def _notes(written: WrittenModel) -> tuple[str, ...]:
    codes = f"{written.same_codes} matrices have the codes of the source, their scales in float16"
    return (f"tokenizer: {written.tokenizer}", *([codes] if written.same_codes else []))
