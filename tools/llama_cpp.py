"""The figures of llama.cpp's own perplexity tool beside those of ``evaluate --like llama.cpp``.

    uv run --with gguf tools/llama_cpp.py llama-perplexity

The argument is the tool, built for this machine (the source that llama-cpp-python ships has it:
``cmake -B build -DLLAMA_OPENSSL=OFF`` and ``cmake --build build --target llama-perplexity``). It
runs the shipped checkpoint and its copy in 4 bits, both as GGUF in float32 with float32 keys and
values, so that nothing differs but the two programs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
from numpy.typing import NDArray
from plastic_export import load_model
from plastic_export.cli import main as plastic

DATA = Path(__file__).resolve().parents[1] / "tests-integration" / "data" / "stdlib-llama"
TEXT = DATA / "heldout.txt"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def dense(module: nn.Module) -> NDArray[np.float32]:
    """The weight that a layer computes with, in float32."""
    if "scales" not in module:
        return np.array(module.weight.astype(mx.float32))
    scales, biases = (module[name].astype(mx.float32) for name in ("scales", "biases"))
    sizes = {"group_size": module.group_size, "bits": module.bits}
    return np.array(mx.dequantize(module.weight, scales, biases, **sizes))


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows in the order in which GGUF's Llama rotates them: pairs side by side."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def add_tokenizer(writer: Any, file: Path) -> None:
    """Add the pieces of a sentencepiece model, and that BOS begins a text."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(str(file))
    every = range(model.vocab_size())
    kinds = ((2, model.is_unknown), (3, model.is_control), (6, model.is_byte))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(i).encode() for i in every])
    writer.add_token_scores([model.get_score(i) for i in every])
    types = [next((kind for kind, is_one in kinds if is_one(i)), 1) for i in every]
    writer.add_token_types(types)
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)


def write_gguf(folder: Path, file: Path) -> None:
    """Write a Llama with a sentencepiece tokenizer as GGUF in float32."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_tokenizer(writer, DATA / "tokenizer.model")
    modules = dict(load_model(folder).named_modules())
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for path, name in OUTSIDE.items():
        writer.add_tensor(f"{name}.weight", dense(modules[path]))
    for block in range(config["num_hidden_layers"]):
        for path, name in NAMES.items():
            weight = dense(modules[f"model.layers.{block}.{path}"])
            weight = interleaved(weight, heads[name]) if name in heads else weight
            writer.add_tensor(f"blk.{block}.{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(tool: str, model: Path, *words: str) -> str:
    """Run the tool on the text, and return what it prints."""
    exact = ("-fa", "off", "-ctk", "f32", "-ctv", "f32", "-c", "512", "-b", "512")
    command = [tool, "-m", str(model), "-f", str(TEXT), *exact, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"{done.stderr}\n{done.stdout}"


def main() -> None:
    """Print what both say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", help="llama-perplexity of llama.cpp")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        mlx_lm.convert(str(DATA), str(work / "Q4"), quantize=True, q_bits=4)
        for folder, file in ((DATA, "SRC.gguf"), (work / "Q4", "Q4.gguf")):
            write_gguf(folder, work / file)
        base = str(work / "base")
        first = run(options.tool, work / "SRC.gguf", "--save-all-logits", base)
        print(first[first.index("Final estimate") :].splitlines()[0])
        kl = ("--kl-divergence", "--kl-divergence-base", base)
        second = run(options.tool, work / "Q4.gguf", *kl)
        print(second[second.index("======") :])
        words = ["--reference", str(DATA), "--text", str(TEXT), "--like", "llama.cpp", "--full"]
        with chdir(work):
            plastic(["evaluate", "Q4", *words])


if __name__ == "__main__":
    main()
