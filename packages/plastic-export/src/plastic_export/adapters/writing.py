"""An adapter into a new folder, in the form that is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from plastic_export.adapters.adapter import Adapter, Form
from plastic_export.adapters.files import AdapterFiles
from plastic_export.adapters.kohya_form import kohya_files
from plastic_export.adapters.mlx_form import mlx_files
from plastic_export.adapters.peft_form import peft_files
from plastic_export.folder.output import OutputFolder


def write_adapter(
    adapter: Adapter, out: str | os.PathLike[str], form: Form, *, uniform: bool = False
) -> Path:
    """Write an adapter: complete, or not at all.

    Args:
        adapter: The adapter; layers of rank 0 are left out.
        out: Folder to make; one that is there must be empty.
        form: ``"mlx"`` for mlx-lm's ``--adapter-path``, one rank for all, smaller ones filled up
            with zeros; ``"peft"`` with the rank of every layer; ``"kohya"``.
        uniform: One rank for all in the form of PEFT too: for vLLM, SGLang and all others that
            do not read ``alpha_pattern``.

    Returns:
        The folder.

    Raises:
        ValueError: If every rank is 0.
        FormatError: If ``out`` is not empty, or no place for a folder.
        OSError: If the system refuses.

    Examples:
        >>> adapter = read_adapter("RUN")
        >>> print(write_adapter(adapter, "ADAPTER", "peft", uniform=True))
        ADAPTER
        >>> read_adapter("ADAPTER").ranks == adapter.ranks  # zeros that fill up are no components
        True
    """
    files = adapter_files(adapter, form, uniform=uniform)
    with OutputFolder(out) as folder:
        files.write(folder)
    return Path(out)


def adapter_files(adapter: Adapter, form: Form, *, uniform: bool = False) -> AdapterFiles:
    """Return what `write_adapter` writes."""
    if form == "mlx":
        return mlx_files(adapter)
    return peft_files(adapter, uniform=uniform) if form == "peft" else kohya_files(adapter)
