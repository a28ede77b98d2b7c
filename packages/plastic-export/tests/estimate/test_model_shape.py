"""The sizes of a model against those that its configuration says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.estimate.model_shape import ModelShape, WeightShape

HIDDEN, WIDE, KEYS, VOCABULARY = 64, 96, 32, 80
BLOCK = 2 * HIDDEN * HIDDEN + 2 * KEYS * HIDDEN + 3 * HIDDEN * WIDE


def shape_of(folder: Path) -> ModelShape:
    with open_checkpoint(folder) as checkpoint:
        return ModelShape.of(checkpoint)


def test_a_llama_is_counted(checkpoint_folder: Path) -> None:
    shape = shape_of(checkpoint_folder)
    assert len(shape.blocks) == 2
    assert sum(w.entries for w in shape.largest_block) == BLOCK
    assert shape.entries == 2 * BLOCK + 2 * VOCABULARY * HIDDEN
    assert shape.nbytes == 2 * shape.entries
    assert (shape.vocabulary, shape.width, shape.heads) == (VOCABULARY, HIDDEN, 4)
    assert shape.products_per_token == 2 * BLOCK + VOCABULARY * HIDDEN
    assert shape.longest_activation == WIDE


def test_a_packed_weight_counts_its_entries_and_its_bytes(
    make_checkpoint: Callable[..., Path], checkpoint_folder: Path
) -> None:
    weights = mx.load(str(checkpoint_folder / "model.safetensors"))
    name = "lm_head"
    packed = mx.quantize(weights.pop(f"{name}.weight"), group_size=64, bits=4)
    parts = dict(zip(("weight", "scales", "biases"), packed, strict=True))
    weights |= {f"{name}.{part}": array for part, array in parts.items()}
    mx.save_safetensors(str(checkpoint_folder / "model.safetensors"), weights)
    config = checkpoint_folder / "config.json"
    text = config.read_text()
    config.write_text(text[:-1] + ', "quantization": {"group_size": 64, "bits": 4}}')
    head = next(w for w in shape_of(checkpoint_folder).weights if w.name == f"{name}.weight")
    assert head.entries == VOCABULARY * HIDDEN
    assert head.nbytes == sum(array.nbytes for array in packed)


def test_a_token_goes_through_its_share_of_the_experts() -> None:
    def weight(name: str, matrices: int) -> WeightShape:
        return WeightShape(name, 4, 4, matrices, 0)

    attention, stack = weight("layers.0.q.weight", 1), weight("layers.0.up.weight", 8)
    single = weight("layers.0.experts.3.up.weight", 1)
    head = weight("lm_head.weight", 1)
    shape = ModelShape((attention, stack, single, head), active=0.25)
    assert shape.products_per_token == 16 * (1 + 0.25 * 8 + 0.25 + 1)
