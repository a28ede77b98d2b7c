"""Time and memory to trace a checkpoint of many shards and to prove the form of its output.

    uv run tools/bench/tracing.py                10,221 tensors in 300 shards
    uv run tools/bench/tracing.py --layers 4 --shards 10

The checkpoint is a Qwen3-MoE whose experts are tensors of their own, and holes of sparse files:
nothing of them is read. Memory is the growth of the peak after everything was imported. The peer is
the lazy load of mlx-lm itself, which a trace contains.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx_lm.models.qwen3_moe
from mlx_lm.utils import load_model
from plastic_core.files import TensorSpec
from plastic_export import open_checkpoint
from plastic_export.compression import Remainder, plannable
from plastic_export.source import Source, write_holes

WIDTH, INNER, EXPERTS, TOKENS = 256, 64, 128, 1024
CONFIG: dict[str, Any] = {
    "model_type": mlx_lm.models.qwen3_moe.__name__.rpartition(".")[2],
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "moe_intermediate_size": INNER,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": TOKENS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}


def moe_specs(layers: int) -> list[TensorSpec]:
    """Return the tensors of such a model with so many layers, in bfloat16."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (TOKENS, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (TOKENS, WIDTH),
    }
    attention = {"q_proj": (256, WIDTH), "k_proj": (128, WIDTH), "v_proj": (128, WIDTH)}
    attention |= {"o_proj": (WIDTH, 256)}
    for block in (f"model.layers.{i}" for i in range(layers)):
        shapes |= {f"{block}.self_attn.{n}.weight": shape for n, shape in attention.items()}
        shapes |= {f"{block}.self_attn.{n}_norm.weight": (64,) for n in "qk"}
        shapes |= {f"{block}.{n}_layernorm.weight": (WIDTH,) for n in ("input", "post_attention")}
        shapes[f"{block}.mlp.gate.weight"] = (EXPERTS, WIDTH)
        for expert in (f"{block}.mlp.experts.{e}" for e in range(EXPERTS)):
            shapes |= {f"{expert}.{n}_proj.weight": (INNER, WIDTH) for n in ("gate", "up")}
            shapes[f"{expert}.down_proj.weight"] = (WIDTH, INNER)
    return [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]


def write_experts(folder: Path, layers: int, shards: int) -> int:
    """Write the checkpoint, and return the number of its tensors."""
    tensors = moe_specs(layers)
    each = -(-len(tensors) // shards)
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        write_holes(folder / name, tensors[i * each : (i + 1) * each])
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    return len(tensors)


def peak_mebibytes() -> float:
    """Return the peak of the resident memory in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--shards", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = write_experts(folder, options.layers, options.shards)
        print(f"{count} tensors in {options.shards} shards")
        start, before = time.perf_counter(), peak_mebibytes()

        def row(what: str) -> None:
            seconds, memory = time.perf_counter() - start, peak_mebibytes() - before
            print(f"{what:44}{seconds:6.1f} s {memory:6.0f} MiB")

        load_model(folder, lazy=True)
        row("mlx-lm loads it lazily")
        start = time.perf_counter()
        with open_checkpoint(folder) as checkpoint:
            row("the headers are checked")
            source = Source.of(checkpoint)
            row("and every parameter is traced")
            Remainder.of(source, plannable(source))
            row("and the form of an output is proved")


if __name__ == "__main__":
    main()
