"""What GGUF says of a model beside its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError

from plastic_export.gguf.architectures import ARCHITECTURES, Architecture
from plastic_export.gguf.gguf_file import GGUFTensor
from plastic_export.gguf.package import gguf_package
from plastic_export.gguf.rope import add_rope

CONVERTER = "`plastic gguf` prints the commands of llama.cpp's converter"


def architecture_of(config: Mapping[str, Any], folder: Path) -> Architecture:
    """Return the architecture of a checkpoint.

    Args:
        config: Its configuration.
        folder: Its folder, for the message.

    Raises:
        FormatError: If it is not one of those that are written here.
    """
    found = ARCHITECTURES.get(str(config.get("model_type")))
    reason = "" if found else f"models of type {config.get('model_type')!r} are not written here"
    reason = reason or (found.refusal(config) if found else "")
    if found is None or reason:
        remedy = f"{CONVERTER} for what it is; written are {', '.join(ARCHITECTURES)}"
        raise FormatError.about(folder, reason, remedy)
    return found


def head_dimensions(config: Mapping[str, Any]) -> int:
    """Return the dimensions of a head of attention.

    Examples:
        >>> head_dimensions({"hidden_size": 64, "num_attention_heads": 4})
        16
    """
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def add_metadata(
    writer: Any, architecture: Architecture, config: Mapping[str, Any], name: str
) -> None:
    """Add the sizes of a model and the settings of its layers.

    Args:
        writer: The writer.
        architecture: The architecture.
        config: The configuration.
        name: The name of the model.
    """
    heads, dimensions = config["num_attention_heads"], head_dimensions(config)
    writer.add_type(gguf_package().GGUFType.MODEL)
    writer.add_name(name)
    writer.add_context_length(config.get("max_position_embeddings") or 2048)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(dimensions)
    writer.add_value_length(dimensions)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_rope(writer, config, dimensions)
    if architecture.add is not None:
        architecture.add(writer, config)


def add_types(writer: Any, tensors: Sequence[GGUFTensor]) -> None:
    """Add what most of the matrices are stored as."""
    package = gguf_package()
    common = Counter(t.type for t in tensors if len(t.shape) > 1).most_common(1)[0][0]
    name = "ALL_F32" if common == "F32" else f"MOSTLY_{common}"
    writer.add_file_type(package.LlamaFileType[name])
    writer.add_quantization_version(package.GGML_QUANT_VERSION)
