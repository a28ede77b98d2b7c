"""The check of an output: its window, its run block by block, and the limit of its divergence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.evaluation.by_blocks import logits_by_blocks
from plastic_export.evaluation.check_window import CheckWindow, check_window
from plastic_export.evaluation.output_check import divergence_limit
from plastic_export.model.load import load_model

Make = Callable[..., Path]


def window_of(folder: Path, calibration: Calibration | None = None) -> CheckWindow:
    with open_checkpoint(folder) as checkpoint:
        return check_window(checkpoint, calibration)


def test_the_window_is_the_beginning_of_a_text(readable: Path, text: Path) -> None:
    chosen = window_of(readable, Calibration(text, window=80, windows=4))
    assert (chosen.text, chosen.tokens.shape) == (text.name, (1, 64))
    letters = [ord(letter) - 46 for letter in text.read_text()[:64]]
    assert chosen.tokens[0].tolist() == letters


@pytest.mark.parametrize("vocabulary", [20, 80])
def test_without_a_tokenizer_that_fits_tokens_are_drawn_within_the_vocabulary(
    make_readable: Make, vocabulary: int
) -> None:
    source = make_readable(vocab_size=vocabulary)
    if vocabulary == 80:  # else the tokenizer is there and knows more tokens than the model
        (source / "tokenizer.json").unlink()
    chosen, again = window_of(source), window_of(source)
    assert (chosen.text, chosen.tokens.shape) == ("random tokens", (1, 64))
    assert 0 <= chosen.tokens.min().item() < chosen.tokens.max().item() < vocabulary
    assert chosen.tokens.tolist() == again.tokens.tolist()


def test_the_window_is_no_longer_than_the_positions_of_the_model(make_readable: Make) -> None:
    assert window_of(make_readable(max_position_embeddings=24)).tokens.shape == (1, 24)


def write_llama(folder: Path, dtype: mx.Dtype, *, bits: int | None, blocks: int = 2) -> Path:
    """A Llama whose head is its embedding, packed or not, in MLX's form."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
    config = {"model_type": "llama", "num_hidden_layers": blocks, "rms_norm_eps": 1e-6, **sizes}
    config |= {"vocab_size": 96, "tie_word_embeddings": True}
    model = llama.Model(llama.ModelArgs.from_dict(config))
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, 32, bits)
        config["quantization"] = {"group_size": 32, "bits": bits}
    folder.mkdir()
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("bits", [None, 4])
def test_block_by_block_it_predicts_what_the_whole_model_does(
    tmp_path: Path, bits: int | None
) -> None:
    folder, tokens = write_llama(tmp_path / "x", mx.float32, bits=bits), mx.arange(32)[None]
    expected = load_model(folder)(tokens)
    assert mx.allclose(logits_by_blocks(folder, tokens), expected, rtol=1e-3, atol=1e-4).item()


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "x", mx.float32, bits=None, blocks=12)
    size = (folder / "model.safetensors").stat().st_size
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    logits_by_blocks(folder, mx.arange(8)[None])
    assert mx.get_peak_memory() - before < size / 3


def test_numbers_that_overflow_the_type_they_are_stored_in_are_seen(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "x", mx.float16, bits=None)
    weights = mx.load(str(folder / "model.safetensors"))
    large = {n: w * 1000 for n, w in weights.items() if "up_proj" in n or "gate_proj" in n}
    mx.eval(large)
    mx.save_safetensors(str(folder / "model.safetensors"), weights | large, {"format": "mlx"})
    assert not np.isfinite(np.asarray(logits_by_blocks(folder, mx.arange(8)[None]))).all()


def test_the_limit_follows_the_prediction_and_ends_where_nothing_is_known() -> None:
    assert divergence_limit(4.0, 100, 0.01) == pytest.approx(0.5)
    assert divergence_limit(4.0, 100, 2.0) == divergence_limit(4.0, 100, None) == 6.0
    assert divergence_limit(0.5, 100, None) == math.log(100)
    assert divergence_limit(0.0, 100, 0.0) == 0.01
