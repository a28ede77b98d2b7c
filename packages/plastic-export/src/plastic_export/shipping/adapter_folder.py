"""Adapters for the programs that load them: in the form of PEFT, or of mlx-lm."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
from plastic_core.files import MLX_DTYPES, FormatError, dtype_name, files_under

from plastic_export.adapters.adapter import Adapter, Form, LoraPair
from plastic_export.adapters.base_name import name_of_base
from plastic_export.adapters.fitting import check_fits
from plastic_export.adapters.named_base import local_base, open_named_base
from plastic_export.adapters.reading import is_adapter, read_adapter
from plastic_export.adapters.writing import write_adapter
from plastic_export.folder.adapter_files import FILE, FOLDER
from plastic_export.shipping.dense_folder import TYPES, export_mlx
from plastic_export.shipping.request import Exported, ExportRequest, checked_type

_SERVERS = (
    "vLLM and SGLang do not read the ranks and alphas of single layers, and would change nothing: "
    "for these, export it with --uniform"
)


def export_peft(request: ExportRequest) -> Exported:
    """Write an adapter as PEFT loads it.

    Args:
        request: What is wanted. ``type`` is that of the factors.

    Returns:
        What was written, with what is to be known of its base.

    Raises:
        FormatError: If the source is no adapter, is damaged or does not fit the base, or the
            place is taken.
        ValueError: If the type is unknown, or the whole is asked for.
        OSError: If the system refuses. Nothing is left behind.
    """
    return _export(request, "peft")


def export_for_mlx(request: ExportRequest) -> Exported:
    """Write for stock mlx-lm: an adapter of another form as an adapter, all else as one model.

    Args:
        request: What is wanted; ``piece`` says it where the source alone does not.

    Returns:
        What was written.

    Raises:
        FormatError, ValueError, OSError: See `export_peft` and `export_dense`.
    """
    source = Path(request.source)
    is_foreign = is_adapter(source) and not _is_for_mlx(source)
    if request.piece == "adapter" or (request.piece is None and is_foreign):
        return _export(request, "mlx")
    if is_foreign:
        reason = "its form is another than mlx-lm's, which alone is merged"
        remedy = "export it --to mlx first, then merge what was written"
        raise FormatError.about(source, reason, remedy)
    return export_mlx(request)


def _is_for_mlx(source: Path) -> bool:
    """Tell whether a folder, or the run in it, holds an adapter in mlx-lm's form."""
    return any((folder / FILE).is_file() for folder in (source, source / FOLDER))


def _export(request: ExportRequest, form: Form) -> Exported:
    if request.piece not in (None, "adapter"):
        raise ValueError(f"`piece` must be adapter for an adapter, got {request.piece}.")
    wanted = checked_type(request.type, TYPES)
    adapter, note = _named(request)
    if wanted is not None:
        adapter = _cast(adapter, MLX_DTYPES[wanted])
    write_adapter(adapter, request.dest, form, uniform=request.uniform)
    awake = adapter.awake().layers.values()
    is_patterned = form == "peft" and not request.uniform and len({p.rank for p in awake}) > 1
    return Exported(
        request.dest,
        form,
        sum(path.stat().st_size for path in files_under(request.dest)),
        dict(Counter(dtype_name(side) for pair in awake for side in (pair.A, pair.B))),
        notes=tuple(filter(None, [note, _SERVERS if is_patterned else ""])),
        how_to_run=_how_to_run(request.dest, adapter, form),
    )


def _named(request: ExportRequest) -> tuple[Adapter, str]:
    """Return the adapter with the name of its base, and what is to be known of that."""
    with open_named_base(request.base, revision=request.revision) as base:
        adapter = read_adapter(request.source, base=base)
        if base is not None:
            name = name_of_base(base)
            return replace(adapter, base=name.name, revision=name.revision), name.note
    if adapter.form == "kohya":
        reason = "kohya's names have underscores for dots, and only the base says which"
        raise FormatError.about(request.source, reason, "name the base with --base")
    local = local_base(adapter)
    if local is None:
        return adapter, "" if adapter.base else "it names no base; give one with --base"
    with open_named_base(local) as base:
        assert base is not None
        check_fits(Path(request.source), adapter, base)
        name = name_of_base(base)
    return replace(adapter, base=name.name, revision=name.revision), name.note


def _cast(adapter: Adapter, dtype: mx.Dtype) -> Adapter:
    cast = {
        path: LoraPair(pair.A.astype(dtype), pair.B.astype(dtype), pair.scale)
        for path, pair in adapter.layers.items()
    }
    return replace(adapter, layers=cast)


def _how_to_run(folder: Path, adapter: Adapter, form: Form) -> str:
    base = adapter.base or "BASE"
    if form == "peft":
        return f"PeftModel.from_pretrained(base, {str(folder)!r})  # of the package peft"
    words = ["mlx_lm.generate", "--model", base, "--adapter-path", str(folder), "--prompt", "..."]
    return shlex.join(words)
