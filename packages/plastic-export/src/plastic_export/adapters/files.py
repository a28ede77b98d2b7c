"""The files of an adapter in one form, written whole, and never over what somebody changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from plastic_core.files import (
    ITEM_BYTES,
    FormatError,
    TensorSpec,
    array_bytes,
    dtype_name,
    encode_header,
    export_safetensors,
    read_arrays,
    read_json,
    write_json,
)

from plastic_export.folder.adapter_files import CONFIG

OF_THE_BASE = ("base_model_name_or_path", "model", "revision")
"""The entries of a configuration that say what the base is called."""


class AdapterFiles(NamedTuple):
    """The content of an adapter's folder.

    Attributes:
        file: Name of the file of tensors.
        tensors: These tensors by name.
        config: What ``adapter_config.json`` holds; None where the form has none.
        format: The ``format`` in the header of the file.
    """

    file: str
    tensors: dict[str, mx.array]
    config: dict[str, Any] | None
    format: str

    @property
    def nbytes(self) -> int:
        """Bytes of the file of tensors."""
        every = (TensorSpec(n, dtype_name(a), tuple(a.shape)) for n, a in self.tensors.items())
        specs = sorted(every, key=lambda spec: (-ITEM_BYTES[spec.dtype], spec.name))
        return len(encode_header(specs, {"format": self.format})) + sum(s.nbytes for s in specs)

    def write(self, folder: Path) -> Path:
        """Write them into a folder, which is made if its parent is there; return it.

        Raises:
            OSError: If the system refuses.
        """
        folder.mkdir(exist_ok=True)
        export_safetensors(folder / self.file, self.tensors, metadata={"format": self.format})
        if self.config is not None:
            write_json(folder / CONFIG, self.config)
        return folder

    def rewrite(self, folder: Path) -> Path:
        """Write them where an earlier call wrote the same, and nothing else.

        Raises:
            FormatError: If a file there holds something else, as after mlx-lm's own trainer.
            OSError: If the system refuses.
        """
        _check_own(folder / self.file, _is_adapter(folder / self.file, self.tensors))
        _check_own(folder / CONFIG, _is_config(folder / CONFIG, self.config))
        return self.write(folder)


def _check_own(file: Path, is_own: bool) -> None:
    """Refuse to replace what was changed since, as by mlx-lm's own trainer."""
    if file.exists() and not is_own:
        reason = "it is not what this run wrote, and in the way of its adapter"
        raise FormatError.about(file, reason, "move it elsewhere, then start the same command")


def _is_adapter(file: Path, tensors: Mapping[str, mx.array]) -> bool:
    """Tell whether a file holds exactly these tensors."""
    try:
        there, _ = read_arrays(file)
    except (FormatError, FileNotFoundError):
        return False
    return there.keys() == tensors.keys() and all(
        array.dtype == tensors[name].dtype
        and array.shape == tensors[name].shape
        and array_bytes(array).tobytes() == array_bytes(tensors[name]).tobytes()
        for name, array in there.items()
    )


def _is_config(file: Path, config: dict[str, Any] | None) -> bool:
    """Tell whether a file holds this configuration; where the base is may have changed since."""
    try:
        there = read_json(file)
    except (FormatError, FileNotFoundError):
        return False
    return config is not None and _but_base(there) == _but_base(config)


def _but_base(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in OF_THE_BASE}
