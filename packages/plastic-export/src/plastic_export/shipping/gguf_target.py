"""The target ``gguf``: one file for llama.cpp, a model or an adapter."""

from __future__ import annotations

import shlex

from plastic_export.gguf.adapter_file import write_gguf_adapter
from plastic_export.gguf.encoding import TYPES
from plastic_export.gguf.model_file import WrittenModel, write_model
from plastic_export.merging.over_base import OverBase, open_over_base
from plastic_export.shipping.request import Exported, ExportRequest, checked_type

RUNNER = ("llama-completion", "-no-cnv", "-m")
PROMPT = "Once upon a time"


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
        piece = request.piece or ("adapter" if source.is_adapter else "whole")
        if piece == "adapter":
            return _adapter(request, source, wanted)
        fused = piece == "whole"
        written = write_model(source, request.dest, wanted, with_adapter=fused, track=request.track)
    return Exported(
        request.dest,
        "gguf",
        request.dest.stat().st_size,
        dict(written.types),
        written.errors,
        _notes(written),
        shlex.join([*RUNNER, str(request.dest), "-p", PROMPT]),
    )


def _adapter(request: ExportRequest, source: OverBase, type: str | None) -> Exported:
    if source.adapter is None:
        raise ValueError(f"`piece` must be whole for {request.source}, which has no adapter.")
    if type == "Q8_0":
        raise ValueError("`type` must be f32, f16 or bf16 for an adapter, got 'q8_0'.")
    checkpoint, dest = source.checkpoint, request.dest
    types = write_gguf_adapter(source.adapter, checkpoint.config, checkpoint.folder, dest, type)
    note = f"it goes over {checkpoint.name} as GGUF; its own scale is 1"
    words = [*RUNNER, "BASE.gguf", "--lora", str(dest), "-p", PROMPT]
    return Exported(
        dest, "gguf", dest.stat().st_size, dict(types), notes=(note,), how_to_run=shlex.join(words)
    )


def _notes(written: WrittenModel) -> tuple[str, ...]:
    codes = f"{written.same_codes} matrices have the codes of the source, their scales in float16"
    return (f"tokenizer: {written.tokenizer}", *([codes] if written.same_codes else []))
