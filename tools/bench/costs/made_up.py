"""Llamas with random weights: their calibration, and a plan and a compression of one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from bakeoff.setting import DATA
from calibration import forward, gram_bytes, random_model
from kept.measurements import Figures
from meters import peak, resident, spent
from mlx.utils import tree_flatten
from plastic_core.files import write_json
from plastic_export import Calibration, execute_plan, plan_checkpoint
from plastic_export.calibration import in_batches, pulled_tokens
from plastic_export.model import use_numpy_functions
from plastic_runtime import measure_grams
from plastic_runtime.measure import linear_layers

from costs.one_matrix import SMALL, fully_rounded

TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def calibrated(
    blocks: int,
    width: int,
    inner: int,
    vocabulary: int,
    windows: int,
    window: int,
    gradients: int | None = None,
) -> Figures:
    """The Grams of all linear layers, head included, and a plain forward pass on the same tokens.

    Gradients are taken of so many of the batches, or of as many tokens as ``plastic plan`` takes.

    ``largest`` is the bytes of the largest block in float32, with its sums: of the model, or of
    the head with its input Gram.
    """
    model = random_model(blocks, width, vocabulary, inner=inner)
    tokens = mx.random.randint(0, vocabulary, (windows, window), key=mx.random.key(0))
    batches = in_batches(tokens, max(vocabulary, inner))
    mx.eval(batches)
    pulled = pulled_tokens(tokens.size, max(width, inner), routed=False)
    gradients = gradients or -(-len(batches) * pulled // tokens.size)
    block, head = widened_bytes(model.layers[0]), widened_bytes(model.lm_head)
    largest = max(block + gram_bytes(model.layers[0]), head + 4 * width**2)
    paths = [*linear_layers(model, None)[0]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "grams.npz"
        loaded = resident()
        with use_numpy_functions():  # as ``plastic plan`` measures
            taken, _ = spent(
                lambda: measure_grams(
                    model, batches, file, paths=paths, gradients=gradients
                ).close()
            )
        added = peak() - loaded
    once, _ = spent(lambda: forward(model, batches))  # whose logits take more than all of that
    sizes = {"loaded": loaded, "largest": largest, "added": added}
    return {**taken._asdict(), "forward": once._asdict(), "tokens": tokens.size, **sizes}


def widened_bytes(module: nn.Module) -> int:
    """Bytes of all parameters in float32."""
    return sum(4 * array.size for array in dict(tree_flatten(module.parameters())).values())


def compressed_made_up(
    blocks: int, width: int, windows: int, window: int, bits_per_weight: float
) -> Figures:
    """A plan and a compression of a made-up checkpoint with the tokenizer of the shipped one."""
    fully_rounded(*SMALL, bits=4)  # so that compiled kernels are there
    with tempfile.TemporaryDirectory() as name:
        source, plan = Path(name) / "source", Path(name) / "plan.json"
        weights = written_model(source, blocks, width)
        text = Calibration(DATA / "calibration.txt", window, windows)
        budgets = [bits_per_weight]
        planned, _ = spent(lambda: plan_checkpoint(source, plan, calibration=text, budgets=budgets))
        written, _ = spent(lambda: execute_plan(source, Path(name) / "out", plan))
    seconds = {"cpu": planned.cpu + written.cpu, "wall": planned.wall + written.wall}
    return seconds | {"plan": planned._asdict(), "weights": weights, "tokens": windows * window}


def written_model(folder: Path, blocks: int, width: int) -> int:
    """Write a random model; return how many weights it has."""
    vocabulary = 512
    model = random_model(blocks, width, vocabulary)
    folder.mkdir()
    for file in TOKENIZER:
        shutil.copy(DATA / file, folder)
    args = model.args
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "intermediate_size": args.intermediate_size,
        "num_attention_heads": args.num_attention_heads,
        "rms_norm_eps": args.rms_norm_eps,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }
    write_json(folder / "config.json", config)
    tensors = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    return sum(array.size for array in tensors.values())
