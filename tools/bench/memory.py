"""Peak memory of ``plastic compress`` against the largest matrix of a synthetic checkpoint.

    uv run tools/bench/memory.py                 a 2 GB checkpoint in bfloat16
    uv run tools/bench/memory.py --gigabytes 0.2 --dims 512

The checkpoint is a random Llama, written tensor by tensor; the compression runs in a process of
its own, whose peak resident memory the kernel reports, interpreter and libraries included; that
of the worker that factorises is added, as if both peaks came at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from plastic_core.files import SafetensorsWriter, TensorSpec

MiB = 2**20
CHILD = """
import atexit, resource, sys

def print_peak():
    unit = 1 if sys.platform == "darwin" else 1024
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # it factorizes in a process beside it
    print(sum(resource.getrusage(who).ru_maxrss for who in both) * unit)

atexit.register(print_peak)  # before the import, and so after that process has been closed
from plastic_export import compress
compress(sys.argv[1], sys.argv[2], keep=float(sys.argv[3]), strategy=sys.argv[4], check=False)
"""


def specs(dims: int, layers: int) -> list[TensorSpec]:
    """The tensors of a Llama of these sizes, in bfloat16."""
    hidden = dims * 11 // 4
    shapes = {"model.embed_tokens.weight": (1024, dims), "lm_head.weight": (1024, dims)}
    for i in range(layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        shapes |= {f"{attention}.{p}_proj.weight": (dims, dims) for p in "qkvo"}
        shapes |= {f"{mlp}.{p}_proj.weight": (hidden, dims) for p in ("gate", "up")}
        shapes[f"{mlp}.down_proj.weight"] = (dims, hidden)
    return [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]


def write_checkpoint(folder: Path, tensors: list[TensorSpec], dims: int, layers: int) -> None:
    """A folder that ``plastic compress`` reads; weights are normal, rounded to bfloat16."""
    rng = np.random.default_rng(0)
    writer = SafetensorsWriter(folder / "model.safetensors", tensors, {"format": "pt"})
    for spec in tensors:
        values = rng.standard_normal(spec.shape, dtype=np.float32)
        upper = (values.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16
        writer.write(spec.name, upper.reshape(-1).view(np.uint8))
    writer.close()
    config = {
        "model_type": "llama",
        "hidden_size": dims,
        "intermediate_size": dims * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "rms_norm_eps": 1e-6,
        "vocab_size": 1024,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    """Print one row: sizes, peak, and the peak over the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--dims", type=int, default=2048)
    parser.add_argument("--keep", default="0.5")
    parser.add_argument("--strategy", default="energy")
    options = parser.parse_args()
    per_layer = sum(s.nbytes for s in specs(options.dims, 1)[2:])
    layers = max(1, round(options.gigabytes * 1e9 / per_layer))
    tensors = specs(options.dims, layers)
    largest = max(s.nbytes for s in tensors)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        write_checkpoint(source, tensors, options.dims, layers)
        started = time.monotonic()
        words = [str(source), str(Path(name) / "out"), options.keep, options.strategy]
        child = [sys.executable, "-c", CHILD, *words]
        done = subprocess.run(child, capture_output=True, text=True, check=True)
        seconds = time.monotonic() - started
    peak = int(done.stdout)
    limit = 4 * largest + 300 * MiB
    print(f"checkpoint        {sum(s.nbytes for s in tensors) / 1e9:.2f} GB, {layers} layers")
    print(f"largest matrix    {largest / MiB:.1f} MiB in bfloat16")
    print(f"peak              {peak / MiB:.1f} MiB")
    print(f"4 largest + 300   {limit / MiB:.1f} MiB; the peak is {peak / limit:.2f} of it")
    print(f"time              {seconds:.0f} s")


if __name__ == "__main__":
    main()
