"""Calibration of mlx-lm's own models: block by block, in float32, from a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.utils import _get_classes
from plastic_core.testing import parameters, tolerance
from plastic_export.calibration import loss_grams as loss_grams_module
from plastic_export.calibration.loss_grams import measure_loss_grams, use_float32
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.model.load import load_model
from plastic_export.model.stock import linear_paths
from plastic_runtime import LossGrams, loss_grams, measure_grams
from plastic_runtime.measure import BlockChain, linear_layers

Make = Callable[..., Path]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {"rope_scaling": None, "partial_rotary_factor": 1.0},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 4, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def model_of(family: str) -> nn.Module:
    """A random float32 model whose activations stay near one."""
    kind, args = _get_classes({"model_type": family})
    model: nn.Module = kind(args.from_dict({"model_type": family} | SIZES | FAMILIES[family]))
    rng = np.random.default_rng(0)
    weights = [
        (name, mx.array(rng.standard_normal(a.shape).astype(np.float32) * a.shape[-1] ** -0.5))
        for name, a in parameters(model).items()
        if a.ndim > 1
    ]
    model.load_weights(weights, strict=False)
    model.eval()
    return model


def assert_close(grams: Mapping[str, LossGrams], wanted: Mapping[str, LossGrams]) -> None:
    """Equal up to the rounding of float32."""
    assert grams.keys() == wanted.keys()
    for path, both in grams.items():
        for own, other in zip(both, wanted[path], strict=True):
            assert own.tokens == other.tokens
            limit = tolerance(other.matrix, other.matrix.shape)
            assert np.abs(own.matrix - other.matrix).max() <= limit, path


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_of_mlx_lm_are_measured_block_by_block(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    linears, wanted = linear_layers(model, None)
    batches = list(mx.random.randint(0, 40, (2, 2, 9), key=mx.random.key(1)))
    chain = BlockChain.of(model, linears, wanted, batches[0][:1])
    assert chain is not None
    assert len(chain.blocks) == SIZES["num_hidden_layers"]
    with measure_grams(model, batches, tmp_path / "grams") as grams:
        assert_close(grams, loss_grams(model, batches))


@pytest.mark.parametrize("bits", [None, 4])
def test_weights_as_they_are_stored_count_as_if_they_were_widened(
    checkpoint_folder: Path, bits: int | None
) -> None:
    batch = mx.random.randint(0, 80, (2, 24), key=mx.random.key(5))
    stored, widened = (load_model(checkpoint_folder) for _ in range(2))
    if bits is not None:
        for model in (stored, widened):
            nn.quantize(model, 32, bits)
    use_float32(stored)
    widened.set_dtype(mx.float32)
    assert stored(batch).dtype == mx.float32
    assert_close(loss_grams(stored, [batch]), loss_grams(widened, [batch]))
    types = {name: a.dtype for name, a in parameters(stored).items()}
    if bits is None:
        assert types["lm_head.weight"] == mx.bfloat16


def test_a_text_is_measured_once_and_a_cut_run_goes_on(
    readable: Path, text: Path, tmp_path: Path
) -> None:
    calibration, file = Calibration(text, window=16, windows=4), tmp_path / "grams.npz"
    steps: list[str] = []

    def cut(items: Sequence[Any], description: str) -> Iterable[Any]:
        for item in items:
            steps.append(description)
            yield item
            if "backwards" in description:
                raise KeyboardInterrupt

    def count(items: Sequence[Any], description: str) -> Iterable[Any]:
        for item in items:
            steps.append(description)
            yield item

    with open_checkpoint(readable) as checkpoint:
        paths = sorted(linear_paths(checkpoint.config))
        with pytest.raises(KeyboardInterrupt):
            measure_loss_grams(checkpoint, calibration, paths, file, track=cut)
        for _ in range(2):
            with measure_loss_grams(checkpoint, calibration, paths, file, track=count) as grams:
                assert sorted(grams) == paths
                assert grams.tokens == 4 * 16
    forwards = ["calibrating, forwards"] * 2 + ["calibrating, logits"]
    assert steps == [*forwards, *["calibrating, backwards"] * 2]


@pytest.mark.parametrize(
    ("path", "windows", "pulled"),
    [("v_proj", 4, 32), ("down_proj", 4, 64), ("down_proj", 2, 32), ("down_proj", 124, 992)],
)
def test_gradients_are_of_half_the_text_but_of_as_many_tokens_as_their_entries(
    readable: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    windows: int,
    pulled: int,
) -> None:
    monkeypatch.setattr(loss_grams_module, "_TOKENS", 16)
    calibration = Calibration(text, window=16, windows=windows)
    with open_checkpoint(readable) as checkpoint:
        name = min(p for p in linear_paths(checkpoint.config) if p.endswith(path))
        file = tmp_path / "grams.npz"
        with measure_loss_grams(checkpoint, calibration, [name], file) as grams:
            assert grams.tokens == grams[name].output.tokens == pulled
            assert grams[name].input.tokens == 16 * windows


def test_a_layer_whose_weight_the_model_reads_by_itself_is_not_measured(
    readable: Path, text: Path, tmp_path: Path
) -> None:
    config = json.loads((readable / "config.json").read_text())
    weights = dict(mx.load(str(readable / "model.safetensors")))
    del weights["lm_head.weight"]
    mx.save_safetensors(str(readable / "model.safetensors"), weights)
    tied = config | {"model_type": "seed_oss", "tie_word_embeddings": True}
    (readable / "config.json").write_text(json.dumps(tied))
    paths = ["model.embed_tokens", "model.layers.0.mlp.up_proj"]
    with (
        open_checkpoint(readable) as checkpoint,
        measure_loss_grams(
            checkpoint, Calibration(text, window=16, windows=2), paths, tmp_path / "grams.npz"
        ) as grams,
    ):
        assert list(grams) == paths[1:]


@pytest.mark.parametrize(("key", "value"), [("rope_theta", 2.0), ("rms_norm_eps", 0.1)])
def test_grams_of_another_configuration_are_refused_by_what_differs(
    readable: Path, text: Path, tmp_path: Path, key: str, value: float
) -> None:
    calibration, file = Calibration(text, window=16, windows=4), tmp_path / "grams.npz"
    with open_checkpoint(readable) as checkpoint:
        measure_loss_grams(checkpoint, calibration, ["lm_head"], file).close()
    before = file.read_bytes()
    config = json.loads((readable / "config.json").read_text())
    (readable / "config.json").write_text(json.dumps(config | {key: value}))
    with (
        open_checkpoint(readable) as checkpoint,
        pytest.raises(ValueError, match=rf"had configuration\.{key} .*, this one has {value}"),
    ):
        measure_loss_grams(checkpoint, calibration, ["lm_head"], file)
    assert file.read_bytes() == before


def test_a_short_text_says_how_many_tokens_are_needed_and_found(
    readable: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("abc")
    with (
        open_checkpoint(readable) as checkpoint,
        pytest.raises(ValueError, match=r"has 3 tokens, fewer than one window of 16") as caught,
    ):
        measure_loss_grams(checkpoint, Calibration(short, window=16), [], tmp_path / "grams.npz")
    assert caught.value.__notes__ == [f"in {short}"]
    assert not list(tmp_path.glob("grams*"))


def test_embeddings_that_mlx_reads_are_measured(readable: Path, text: Path, tmp_path: Path) -> None:
    paths = ["lm_head", "model.embed_tokens"]
    with (
        open_checkpoint(readable) as checkpoint,
        measure_loss_grams(
            checkpoint, Calibration(text, window=16, windows=2), paths, tmp_path / "grams.npz"
        ) as grams,
    ):
        assert list(grams) == paths
