"""Dense folders of safetensors: what stock mlx-lm loads without running code, or transformers."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, TensorSpec, files_under, write_json

from plastic_export.checkpoint.reader import QUANTIZATION, Checkpoint
from plastic_export.checkpoint.tensors import FLOATS, module_path
from plastic_export.folder.output import OutputFolder
from plastic_export.folder.shards import Shards, as_stored
from plastic_export.merging.dense_layers import Values
from plastic_export.merging.dense_model import DenseModel, DenseTensor
from plastic_export.merging.over_base import open_over_base
from plastic_export.shipping.request import Exported, ExportRequest, checked_type

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
"""The types of a dense folder, and what safetensors calls them."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OF_PACKING = ("model_file", "plastic", "quantization", "quantization_config")


def export_mlx(request: ExportRequest) -> Exported:
    """Write the dense model under mlx-lm's names, one matrix in memory at a time.

    Args:
        request: What is wanted. ``type`` is one of `TYPES`; None for what is stored.

    Returns:
        What was written.

    Raises:
        FormatError: If the source is damaged, or the place is taken.
        ValueError: If the type is unknown, or an adapter alone is asked for.
        OSError: If the system refuses. Nothing is left behind.
    """
    return _export_folder(request, "mlx", {"format": "mlx"})


def export_dense(request: ExportRequest) -> Exported:
    """Write the dense model as transformers and the tools around it load it.

    Args:
        request: See `export_mlx`.

    Returns:
        What was written.

    Raises:
        FormatError: See `export_mlx`; also if mlx-lm renames or changes tensors on loading, so
            that what it holds is not what transformers knows.
        ValueError, OSError: See `export_mlx`.
    """
    return _export_folder(request, "dense", {"format": "pt"})


def _export_folder(request: ExportRequest, target: str, metadata: Mapping[str, str]) -> Exported:
    wanted = checked_type(request.type, TYPES)
    if request.piece == "adapter":
        raise ValueError("`piece` must be whole or base for a folder of weights, got adapter.")
    opened = open_over_base(request.source, base=request.base, revision=request.revision)
    with opened as found, OutputFolder(request.dest, source=found.checkpoint.folder) as folder:
        model = DenseModel(found, with_adapter=request.piece != "base")
        unchanged = _Unchanged(found.checkpoint) if target == "dense" else None
        specs = [TensorSpec(t.name, wanted or t.dtype, t.shape) for t in model.tensors]
        with Shards(folder, specs, metadata) as shards:
            for tensor, spec in zip(request.track(model.tensors, "merging"), specs, strict=True):
                values = tensor.values()
                if unchanged is not None:
                    unchanged.check(tensor, values)
                shards.write(tensor.name, _typed(values, spec))
                model.forget(tensor)
        write_json(folder / "config.json", dense_config(found.checkpoint.config, wanted))
        _copy_side_files(found.checkpoint, folder)
        nbytes = sum(path.stat().st_size for path in files_under(folder))
    types = dict(Counter(spec.dtype for spec in specs))
    return Exported(request.dest, target, nbytes, types, how_to_run=_how_to_run(request.dest))


def _typed(values: NDArray[np.float32], spec: TensorSpec) -> mx.array:
    """Cast a tensor to the type it is written in.

    Raises:
        ValueError: If it is not within the range of the type: names it.
    """
    try:
        return as_stored(values, spec.dtype)
    except ValueError:
        reason = f"a value of {np.abs(values).max():.3g} does not fit {spec.dtype}"
        remedy = "take --type bf16 or f32"
        raise ValueError(f"tensor {spec.name!r}: {reason}; {remedy}") from None


def _how_to_run(folder: Path) -> str:
    return shlex.join(["mlx_lm.generate", "--model", str(folder), "--prompt", "Once upon a time"])


def dense_config(config: Mapping[str, Any], type: str | None) -> dict[str, Any]:
    """Return the configuration of a dense copy: no packing, no code, the type of its weights.

    Args:
        config: The configuration of what is copied.
        type: The type of all weights, such as ``"BF16"``; None where each keeps its own.
    """
    dense = {k: v for k, v in config.items() if k not in _OF_PACKING}
    text = dense.get("text_config")
    if isinstance(text, dict):
        dense["text_config"] = {k: v for k, v in text.items() if k not in _OF_PACKING}
    if type is not None:
        named = [key for key in ("dtype", "torch_dtype") if key in dense] or ["dtype"]
        dense |= dict.fromkeys(named, _DTYPES[type])
    return dense


class _Unchanged:
    """What mlx-lm does not change on loading has the names and values of the files."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def check(self, tensor: DenseTensor, values: Values) -> None:
        """Refuse a tensor that the files have under another name, or in other numbers.

        Raises:
            FormatError: If it is one.
        """
        there = self._checkpoint.tensors
        info = there.get(tensor.name)
        if info is not None and info.dtype in FLOATS and tensor.is_plain:
            same = np.array_equal(self._checkpoint.matrix(tensor.name), values)
        else:
            path = module_path(tensor.name)
            same = any(name in there for name in (tensor.name, f"{path}.u.weight", *_moved(path)))
        if not same:
            reason = "mlx-lm renames or changes it on loading, and transformers knows another form"
            remedy = "take --to mlx, or compress its source with --format dense"
            folder = self._checkpoint.folder
            raise FormatError.about(folder, reason, remedy, tensor=tensor.name)


def _moved(path: str) -> tuple[str, str]:
    """Where the bias of a layer of factors is."""
    layer = path.removesuffix(".bias")
    return f"{layer}.u.bias", f"{layer}.base.bias"


def _copy_side_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy what lies beside the weights, but for what says how they were packed."""
    checkpoint.copy_side_files(folder)
    (folder / QUANTIZATION).unlink(missing_ok=True)
