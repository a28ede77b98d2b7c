"""The checkpoints that are compressed while something goes wrong, and what is in a folder."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
from plastic_core.files import SafetensorsWriter, TensorSpec, sha256_file

TRAINED = Path(__file__).parents[3] / "tests-integration" / "data" / "stdlib-llama"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
"""A tiny Llama: what is provoked depends on the number of steps, not on their size."""


def tiny(folder: Path, *, shards: int = 2) -> Path:
    """Write a random checkpoint in bfloat16, in several files with an index."""
    folder.mkdir(parents=True)
    specs = _specs()
    index: dict[str, str] = {}
    rng = np.random.default_rng(0)
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = specs[number::shards]
        with SafetensorsWriter(folder / name, part, {"format": "pt"}) as writer:
            for spec in part:
                values = rng.standard_normal(spec.shape, dtype=np.float32) / 8
                upper = (values.view(np.uint32) >> 16).astype(np.uint16)
                writer.write(spec.name, upper.reshape(-1).view(np.uint8))
        index |= {spec.name: name for spec in part}
    _write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    _write(folder / "config.json", CONFIG)
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    return folder


def trained_copy(folder: Path) -> Path:
    """A copy of the trained checkpoint of the repository, 0.9 million parameters."""
    shutil.copytree(TRAINED, folder)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """The digest of every file under a folder, by its path in it; what else a name stands for."""
    return {str(path.relative_to(folder)): _kind(path) for path in sorted(folder.rglob("*"))}


def strays(folder: Path, known: set[str]) -> list[str]:
    """Return what lies in a folder beside the names that belong there."""
    return sorted(set(os.listdir(folder)) - known)


def _kind(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    return sha256_file(path) if path.is_file() else f"{stat.S_IFMT(path.stat().st_mode):o}"


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _specs() -> list[TensorSpec]:
    hidden, inner, vocabulary = 32, 48, 40
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(2):
        path = f"model.layers.{layer}"
        shapes |= {
            f"{path}.input_layernorm.weight": (hidden,),
            f"{path}.self_attn.q_proj.weight": (hidden, hidden),
            f"{path}.self_attn.k_proj.weight": (hidden // 2, hidden),
            f"{path}.self_attn.v_proj.weight": (hidden // 2, hidden),
            f"{path}.self_attn.o_proj.weight": (hidden, hidden),
            f"{path}.post_attention_layernorm.weight": (hidden,),
            f"{path}.mlp.gate_proj.weight": (inner, hidden),
            f"{path}.mlp.up_proj.weight": (inner, hidden),
            f"{path}.mlp.down_proj.weight": (hidden, inner),
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    return [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]
