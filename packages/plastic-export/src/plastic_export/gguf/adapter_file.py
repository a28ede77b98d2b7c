"""An adapter as a GGUF file, for llama.cpp to lay over the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import dtype_name

from plastic_export.adapters.adapter import Adapter, LoraPair
from plastic_export.folder.shards import as_float32
from plastic_export.gguf.encoding import encoded_rows
from plastic_export.gguf.gguf_file import GGUFFile, GGUFTensor, new_writer
from plastic_export.gguf.metadata import architecture_of
from plastic_export.gguf.names import TensorNames, tensor_kind
from plastic_export.gguf.package import gguf_package
from plastic_export.gguf.rows import RowOrder


def write_gguf_adapter(
    adapter: Adapter, config: Mapping[str, Any], folder: Path, dest: Path, type: str | None
) -> Counter[str]:
    """Write an adapter as one GGUF file.

    The scale is multiplied into ``B``, and ``adapter.lora.alpha`` is 0, which llama.cpp reads as
    scale 1 for every tensor, whatever its rank. Layers of rank 0 are left out.

    Args:
        adapter: The adapter, its layers by the paths of mlx-lm's model.
        config: The configuration of the checkpoint that it belongs to.
        folder: The folder of that, for messages.
        dest: The file; must not exist.
        type: ``"F32"``, ``"F16"`` or ``"BF16"``; None for what is stored, F32 where that is scaled.

    Returns:
        The number of tensors by type.

    Raises:
        FormatError: If the architecture has no such layer, or the place is taken.
        ValueError: If every rank is 0.
        OSError: If the system refuses. Nothing is left behind.
    """
    architecture = architecture_of(config, folder)
    names = TensorNames(architecture.name, config["num_hidden_layers"], folder)
    awake = adapter.awake()
    order, kept = RowOrder(architecture, config), type or _stored_type(awake)
    tensors: dict[GGUFTensor, NDArray[np.float32]] = {}
    for path, pair in awake.layers.items():
        name, (A, B) = names.of(f"{path}.weight"), _factors(pair)
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


def _factors(pair: LoraPair) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return ``A`` and ``scale * B``, in float32."""
    return as_float32(pair.A), np.float32(pair.scale) * as_float32(pair.B)


def _stored_type(adapter: Adapter) -> str:
    """Return the type that holds the factors exactly."""
    types = {dtype_name(pair.A) for pair in adapter.layers.values()}
    is_scaled = any(pair.scale != 1.0 for pair in adapter.layers.values())
    return "F32" if is_scaled or len(types) > 1 else types.pop()
