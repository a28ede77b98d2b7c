"""An adapter from a folder or a file, in whatever form it is there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from plastic_core.files import FormatError

from plastic_export.adapters.adapter import Adapter
from plastic_export.adapters.fitting import check_fits
from plastic_export.adapters.kohya_form import read_kohya
from plastic_export.adapters.mlx_form import read_mlx
from plastic_export.adapters.peft_form import read_peft
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.folder.adapter_files import (
    EXTRACT_FILE,
    FILE,
    PEFT_FILE,
    PEFT_FOLDER,
    RUN_FILE,
    SIZES_FILE,
    adapter_of,
)

_PICKLE = "adapter_model.bin"


def read_adapter(source: str | os.PathLike[str], *, base: Checkpoint | None = None) -> Adapter:
    """Read an adapter of mlx-lm, of PEFT, of kohya's scripts, or a run of ``plastic train``.

    Args:
        source: The folder of the adapter; a file of kohya's scripts; the folder of a run that has
            ended, or what it was dialled to; or an output of the format ``adapter``.
        base: The checkpoint that it is for. It is needed to know what kohya's names mean, and
            any adapter that does not fit it is refused.

    Returns:
        The adapter, every layer with the rank that it has.

    Raises:
        FormatError: If there is none, it is of a kind that is no LoRA, holds more than factors of
            linear layers, is damaged, or does not fit the base: names the layer.
        OSError: If a file cannot be read.

    Examples:
        >>> adapter = read_adapter("RUN")
        >>> adapter.form, adapter.ranks["model.layers.0.mlp.up_proj"]
        ('peft', 2)
    """
    adapter = _read(Path(source), base)
    if base is not None:
        check_fits(Path(source), adapter, base)
    return adapter


def is_adapter(source: Path) -> bool:
    """Tell whether a path is an adapter or a run, and not a checkpoint."""
    names = (RUN_FILE, EXTRACT_FILE, SIZES_FILE, PEFT_FILE, FILE, _PICKLE)
    return source.is_file() or any((source / name).is_file() for name in names)


def _read(source: Path, base: Checkpoint | None) -> Adapter:
    if not source.exists():
        raise FormatError.about(source, "there is no such adapter", "check the path")
    if not source.is_dir():
        return read_kohya(source, base)
    if (source / RUN_FILE).is_file():
        if not (source / PEFT_FOLDER).is_dir():
            reason = "the run has no adapter before its end"
            raise FormatError.about(source, reason, "let `plastic train` end it")
        return read_peft(source / PEFT_FOLDER)
    if any((source / name).is_file() for name in (EXTRACT_FILE, SIZES_FILE)):
        return read_peft(source / PEFT_FOLDER)
    if (source / PEFT_FILE).is_file():
        return read_peft(source)
    if (source / FILE).is_file():
        return read_mlx(source)
    if own := adapter_of(source):
        return replace(read_mlx(own), base=str(source.resolve()))
    if (source / _PICKLE).is_file():
        reason = f"{_PICKLE} is a pickle, which is never opened"
        raise FormatError.about(source, reason, "save it again with safe_serialization=True")
    reason = f"it holds neither {PEFT_FILE} nor {FILE}"
    raise FormatError.about(source, reason, "name the folder of an adapter, or of a run")
