"""An adapter of mlx-lm as a GGUF file, for llama.cpp to lay over the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, dtype_name, read_arrays, read_json

from plastic_export.folder.adapter_files import CONFIG, FILE
from plastic_export.folder.shards import as_float32
from plastic_export.gguf.encoding import encoded_rows
from plastic_export.gguf.gguf_file import GGUFFile, GGUFTensor, new_writer
from plastic_export.gguf.metadata import architecture_of
from plastic_export.gguf.names import TensorNames, tensor_kind
from plastic_export.gguf.package import gguf_package
from plastic_export.gguf.rows import RowOrder

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""``A`` (rank, in) and ``B`` (out, rank), whose product is added to a weight."""


def write_gguf_adapter(
    adapter: Path, config: Mapping[str, Any], folder: Path, dest: Path, type: str | None
) -> Counter[str]:
    """Write an adapter of mlx-lm as one GGUF file.

    The scale is multiplied into ``B``, and ``adapter.lora.alpha`` is 0, which llama.cpp reads as
    scale 1 for every tensor, whatever its rank. Components of zeros are left out.

    Args:
        adapter: The folder of the adapter.
        config: The configuration of the checkpoint that it belongs to.
        folder: The folder of that, for messages.
        dest: The file; must not exist.
        type: ``"F32"``, ``"F16"`` or ``"BF16"``; None for what is stored, F32 where that is scaled.

    Returns:
        The number of tensors by type.

    Raises:
        FormatError: If it is damaged, no LoRA of linear layers, or the place is taken.
        OSError: If the system refuses. Nothing is left behind.
    """
    architecture = architecture_of(config, folder)
    names = TensorNames(architecture.name, config["num_hidden_layers"], folder)
    pairs, stored = adapter_pairs(adapter)
    order, kept = RowOrder(architecture, config), type or stored
    tensors: dict[GGUFTensor, NDArray[np.float32]] = {}
    for path, (A, B) in pairs.items():
        name = names.of(f"{path}.weight")
        B = order.of(tensor_kind(name), B)
        tensors |= {GGUFTensor(f"{name}.lora_a", A.shape, kept): A}
        tensors |= {GGUFTensor(f"{name}.lora_b", B.shape, kept): B}
    writer = new_writer(architecture.name)
    writer.add_type(gguf_package().GGUFType.ADAPTER)
    writer.add_string(gguf_package().Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf_package().Keys.Adapter.LORA_ALPHA, 0.0)
    with GGUFFile(dest, writer, list(tensors)) as file:
        for tensor, values in tensors.items():
            file.write(encoded_rows(values, tensor.type))
    return Counter(tensor.type for tensor in tensors)


def adapter_pairs(adapter: Path) -> tuple[dict[str, Pair], str]:
    """Read the factors of an adapter of mlx-lm, its scale multiplied in.

    Args:
        adapter: Its folder.

    Returns:
        The pairs by the path of their layer, and the type that holds them exactly.

    Raises:
        FormatError: If it is damaged, or no LoRA of linear layers.
        OSError: If it cannot be read.
    """
    config = read_json(adapter / CONFIG)
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        remedy = "fuse it: export it with --piece whole"
        raise FormatError.about(adapter, f"it is of type {kind!r}, and GGUF has LoRA alone", remedy)
    scale = float(config.get("lora_parameters", {}).get("scale", 20.0))  # mlx-lm's own default
    arrays, _ = read_arrays(adapter / FILE)
    paths = [name.removesuffix(".lora_a") for name in arrays if name.endswith(".lora_a")]
    pairs = {}
    for path in paths:
        a, b = arrays[f"{path}.lora_a"], arrays.get(f"{path}.lora_b")
        if b is None or a.ndim != 2 or b.ndim != 2:
            reason = "no pair of matrices"
            raise FormatError.about(adapter, reason, "take --piece whole", tensor=path)
        if (pair := _without_zeros(a, b, scale)) is not None:
            pairs[path] = pair
    if not pairs:
        raise FormatError.about(adapter, "it changes nothing", "train it first")
    types = {dtype_name(arrays[f"{path}.lora_a"]) for path in paths}
    return pairs, types.pop() if len(types) == 1 and scale == 1.0 else "F32"


def _without_zeros(a: mx.array, b: mx.array, scale: float) -> Pair | None:
    """Return a pair without the components that are zero; None where nothing is left."""
    A, B = as_float32(a).T, np.float32(scale) * as_float32(b).T
    kept = A.any(axis=1) & B.any(axis=0)
    return (A[kept], B[:, kept]) if kept.any() else None
