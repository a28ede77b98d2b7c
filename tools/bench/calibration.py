"""Time and peak memory of calibration, block by block and with the whole model at once.

    uv run tools/bench/calibration.py                          12 blocks, 1024 wide
    uv run tools/bench/calibration.py --blocks 4 --tokens 1024

The model is a Llama with random weights in bfloat16. Each pass runs in a process of its own, whose
peak resident memory the kernel reports; the limit is what the process holds once the model is
loaded, the sums of one block, and 500 MB. Time is per token, over that of a forward pass with the
same products in the same process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from meters import peak_resident
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from plastic_export.calibration import in_batches, use_float32
from plastic_export.model import use_numpy_functions
from plastic_runtime import loss_grams, measure_grams
from plastic_runtime.measure import linear_layers, using_numpy

MB = 1e6
PASSES = {"whole": "all at once", "blocks": "block by block"}


def random_model(
    blocks: int, width: int, vocabulary: int, *, inner: int | None = None
) -> nn.Module:
    """A Llama in bfloat16, made one tensor at a time."""
    args = ModelArgs(
        model_type="llama",
        hidden_size=width,
        num_hidden_layers=blocks,
        intermediate_size=inner or width * 11 // 4,
        num_attention_heads=width // 64,
        rms_norm_eps=1e-6,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    model: nn.Module = Model(args)
    model.set_dtype(mx.bfloat16)
    use_float32(model)
    for array in dict(tree_flatten(model.parameters())).values():
        mx.eval(array)
    model.eval()
    return model


def wall_seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def forward(model: nn.Module, batches: Sequence[mx.array]) -> None:
    linears, _ = linear_layers(model, None)
    with using_numpy(linears), use_numpy_functions():
        for batch in batches:
            mx.eval(model(batch))


def gram_bytes(block: nn.Module) -> int:
    """Sums of one block in float32: one input per site, one output per layer."""
    linears, _ = linear_layers(block, None)
    sites = ("q_proj", "o_proj", "gate_proj", "down_proj")
    shapes = {path.rpartition(".")[2]: m.weight.shape for path, m in linears.items()}
    inputs = sum(shapes[name][1] ** 2 for name in sites)
    total: int = 4 * (inputs + sum(out**2 for out, _ in shapes.values()))
    return total


def child(options: argparse.Namespace) -> dict[str, float]:
    """One pass, measured."""
    model = random_model(options.blocks, options.width, options.vocabulary)
    shape = (options.tokens // options.window, options.window)
    tokens = mx.random.randint(0, options.vocabulary, shape, key=mx.random.key(0))
    batches = in_batches(tokens, max(options.vocabulary, options.width * 11 // 4))
    mx.eval(batches)
    loaded, once = peak_resident(), wall_seconds(lambda: forward(model, batches))
    paths = [path for path in linear_layers(model, None)[0] if path != "lm_head"]
    if options.only == "whole":
        taken = wall_seconds(lambda: loss_grams(model, batches, paths=paths))
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "grams.npz"
            with use_numpy_functions():
                taken = wall_seconds(
                    lambda: measure_grams(model, batches, file, paths=paths).close()
                )
    return {
        "loaded": loaded,
        "grams": gram_bytes(model.layers[0]),
        "peak": peak_resident(),
        "forward": once / tokens.size,
        "seconds": taken / tokens.size,
    }


def print_passes(options: argparse.Namespace) -> None:
    words = [sys.executable, *sys.argv]
    print(f"{options.blocks} blocks, {options.width} wide, {options.tokens} tokens")
    print(f"{'pass':<15} {'peak MB':>8} {'limit MB':>8} {'ms/token':>9} {'forward passes':>15}")
    for only, label in PASSES.items():
        done = subprocess.run([*words, "--only", only], stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout)
        limit = found["loaded"] + found["grams"] + 500 * MB
        print(
            f"{label:<15} {found['peak'] / MB:>8.0f} {limit / MB:>8.0f} "
            f"{found['seconds'] * 1e3:>9.2f} {found['seconds'] / found['forward']:>15.2f}"
        )
    print(f"model loaded {found['loaded'] / MB:.0f} MB, one block's sums", end=" ")
    print(f"{found['grams'] / MB:.0f} MB, forward pass {found['forward'] * 1e3:.2f} ms/token")
    print("targets: block by block within the limit, at most 8 forward passes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory of calibration.")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=2048, help="of the whole text (2048)")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--only", choices=PASSES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(child(options)))
    else:
        print_passes(options)


if __name__ == "__main__":
    main()
