"""A model as a GGUF file: dense, or every matrix in the type that fits its bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plastic_runtime import Track

from plastic_export.gguf.architectures import Architecture
from plastic_export.gguf.codes import block_type, same_code_rows
from plastic_export.gguf.encoding import encoded_rows, encoding_error, fitting
from plastic_export.gguf.gguf_file import GGUFFile, GGUFTensor, new_writer
from plastic_export.gguf.metadata import (
    add_metadata,
    add_types,
    architecture_of,
    head_dimensions,
)
from plastic_export.gguf.names import TensorNames, tensor_kind
from plastic_export.gguf.rope import rope_factors
from plastic_export.gguf.rows import RowOrder
from plastic_export.gguf.tokens.tokenizer import add_tokenizer
from plastic_export.merging.dense_model import DenseModel, DenseTensor
from plastic_export.merging.over_base import OverBase

ROPE_FACTORS = "rope_freqs.weight"
"""What Llama 3 divides the frequencies by."""


@dataclass
class WrittenModel:
    """What was written of a model.

    Attributes:
        types: Number of tensors by type.
        errors: Worst relative error by the kind of tensor, of those that were rounded.
        tokenizer: What the tokenizer is.
        same_codes: How many matrices keep the codes of MLX.
    """

    types: Counter[str] = field(default_factory=Counter)
    errors: dict[str, float] = field(default_factory=dict)
    tokenizer: str = ""
    same_codes: int = 0


def write_model(
    source: OverBase, dest: Path, type: str | None, *, with_adapter: bool, track: Track
) -> WrittenModel:
    """Write a checkpoint, with what lies over it merged in, as one GGUF file.

    Args:
        source: The checkpoint and its adapter.
        dest: The file; must not exist.
        type: The type of all matrices, such as ``"Q8_0"``; None for what is stored: the codes of
            MLX in the least type that has as many bits, all else as it is.
        with_adapter: Whether the adapter is merged in.
        track: Wraps the loop over the tensors.

    Raises:
        FormatError: If the architecture or the tokenizer is not one that is written here, a
            value is not finite, or the place is taken.
        ModuleNotFoundError: If an extra is missing.
        OSError: If the system refuses. Nothing is left behind.
    """
    config, folder = source.checkpoint.config, source.checkpoint.folder
    architecture = architecture_of(config, folder)
    writer, written = new_writer(architecture.name), WrittenModel()
    add_metadata(writer, architecture, config, source.checkpoint.name)
    model = DenseModel(source, with_adapter=with_adapter)
    names = TensorNames(architecture.name, config["num_hidden_layers"], folder)
    pairs = [(tensor, _place(tensor, names, type)) for tensor in model.tensors]
    written.tokenizer = add_tokenizer(writer, folder, _vocabulary(pairs))
    factors = _rope_factors(config)
    places = [place for _, place in pairs]
    add_types(writer, places)
    rows = _Rows(architecture, config, written)
    with GGUFFile(dest, writer, [*factors, *places]) as file:
        for values in factors.values():
            file.write(values)
        for tensor, place in track(pairs, "writing"):
            file.write(rows.of(tensor, place))
            model.forget(tensor)
    written.types.update(place.type for place in [*factors, *places])
    return written


def _place(tensor: DenseTensor, names: TensorNames, type: str | None) -> GGUFTensor:
    return GGUFTensor(
        names.of(tensor.name), tensor.shape, fitting(type or _own(tensor), tensor.shape)
    )


def _own(tensor: DenseTensor) -> str:
    """The type of what is stored: of codes, one with no fewer bits."""
    if tensor.packing is None:
        return tensor.dtype
    return block_type(tensor.packing) or "Q8_0"


def _vocabulary(pairs: list[tuple[DenseTensor, GGUFTensor]]) -> int:
    return next(place.shape[0] for _, place in pairs if tensor_kind(place.name) == "token_embd")


def _rope_factors(config: Mapping[str, Any]) -> dict[GGUFTensor, NDArray[np.float32]]:
    factors = rope_factors(config, head_dimensions(config))
    if factors is None:
        return {}
    return {GGUFTensor(ROPE_FACTORS, factors.shape, "F32"): factors}


class _Rows:
    """Encodes tensors as rows of bytes, and notes what that changed."""

    def __init__(
        self, architecture: Architecture, config: Mapping[str, Any], written: WrittenModel
    ) -> None:
        self._order, self._written = RowOrder(architecture, config), written
        self._unit_offset = architecture.unit_offset

    def of(self, tensor: DenseTensor, place: GGUFTensor) -> NDArray[np.uint8]:
        """Return the rows of a tensor in its place's type and llama.cpp's order."""
        kind, values = tensor_kind(place.name), tensor.values()
        if self._unit_offset and kind.endswith("norm"):
            values = values + np.float32(1.0)
        if tensor.packing is not None and block_type(tensor.packing) == place.type:
            rows = same_code_rows(tensor.layer, tensor.packing)
            self._written.same_codes += 1
        else:
            rows = encoded_rows(values if values.ndim > 1 else values[:, None], place.type)
        self._note(kind, encoding_error(values, rows, place.type))
        return self._order.of(kind, rows)

    def _note(self, kind: str, error: float) -> None:
        errors = self._written.errors
        if error > 0.0:
            errors[kind] = max(errors.get(kind, 0.0), error)
