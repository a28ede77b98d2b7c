"""The weights of a source as mlx-lm's loaded model holds them, whatever its sanitize does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import llama, mixtral
from numpy.typing import NDArray
from plastic_core.files import FormatError
from plastic_core.testing import parameters
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.checkpoint.warning import CheckpointWarning
from plastic_export.source.source import Source

Make = Callable[..., Path]
Weights = dict[str, mx.array]
Sanitize = Callable[[llama.Model, Weights], Weights]
Q, K, V = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv")
FUSED = "model.layers.0.self_attn.qkv_proj.weight"


def as_float32(array: mx.array) -> NDArray[np.float32]:
    return np.array(array.astype(mx.float32))


def read(source: Path, name: str) -> tuple[str, tuple[str, ...], NDArray[np.float32]]:
    """The form, the tensors and the matrix of a layer."""
    with open_checkpoint(source) as checkpoint:
        traced = Source.of(checkpoint)
        layer = traced.layers[name]
        (matrix,) = traced.matrices(layer)
        (again,) = traced.matrices(layer)
    assert np.array_equal(matrix, again)
    return layer.form, layer.tensors, matrix


def test_a_name_that_changes_is_followed(
    make_checkpoint: Make, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint(weights={f"outer.{name}": w for name, w in tiny_weights.items()})

    def sanitize(model: llama.Model, weights: Weights) -> Weights:
        return {name.removeprefix("outer."): w for name, w in weights.items()}

    monkeypatch.setattr(llama.Model, "sanitize", sanitize)
    form, tensors, matrix = read(source, Q)
    assert (form, tensors) == ("copied", (f"outer.{Q}",))
    assert np.array_equal(matrix, as_float32(tiny_weights[Q]))


def scaled(model: llama.Model, weights: Weights) -> Weights:
    return {name: 3 * w if name == Q else w for name, w in weights.items()}


def scaled_in_place(model: llama.Model, weights: Weights) -> Weights:
    weights[Q] *= 3
    return weights


@pytest.mark.parametrize("sanitize", [scaled, scaled_in_place])
def test_a_value_that_changes_under_its_name_is_read_as_it_is_loaded(
    checkpoint_folder: Path,
    tiny_weights: Weights,
    sanitize: Sanitize,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llama.Model, "sanitize", sanitize)
    form, tensors, matrix = read(checkpoint_folder, Q)
    assert (form, tensors) == ("computed", (Q,))
    assert np.array_equal(matrix, as_float32(3 * tiny_weights[Q]))
    assert read(checkpoint_folder, K)[0] == "copied"


def test_parts_of_a_fused_tensor_are_layers_of_their_own(
    make_checkpoint: Make, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = mx.concatenate([tiny_weights[name] for name in (Q, K, V)])
    rest = {name: w for name, w in tiny_weights.items() if name not in (Q, K, V)}
    source = make_checkpoint(weights=rest | {FUSED: fused})
    cuts = [len(tiny_weights[Q]), len(tiny_weights[Q]) + len(tiny_weights[K])]

    def sanitize(model: llama.Model, weights: Weights) -> Weights:
        parts = mx.split(weights.pop(FUSED), cuts)
        return weights | dict(zip((Q, K, V), parts, strict=True))

    monkeypatch.setattr(llama.Model, "sanitize", sanitize)
    for name in (Q, K, V):
        form, tensors, matrix = read(source, name)
        assert (form, tensors) == ("computed", (FUSED,))
        assert np.array_equal(matrix, as_float32(tiny_weights[name]))


def test_a_weight_that_cannot_be_traced_is_refused_with_its_share(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sanitize(model: llama.Model, weights: Weights) -> Weights:
        return weights | {Q: mx.array(np.array(weights[Q].astype(mx.float32)))}

    monkeypatch.setattr(llama.Model, "sanitize", sanitize)
    said = r"q_proj.* bytes, [0-9.]+% of the model; convert it first"
    with open_checkpoint(checkpoint_folder) as checkpoint, pytest.raises(FormatError, match=said):
        Source.of(checkpoint)


def test_a_value_that_is_not_finite_is_refused_by_name(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sanitize(model: llama.Model, weights: Weights) -> Weights:
        return {name: w / 0 if name == Q else w for name, w in weights.items()}

    monkeypatch.setattr(llama.Model, "sanitize", sanitize)
    with pytest.raises(FormatError, match=f"{Q}.* NaN or infinite"):
        read(checkpoint_folder, Q)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (lambda table: table, "once more, which is the head of the model; it is not copied"),
        (lambda table: table + 1, "another matrix .* mlx-lm uses the embedding"),
    ],
)
def test_a_head_that_the_embedding_is_already_is_told(
    make_checkpoint: Make,
    tiny_weights: Weights,
    head: Callable[[mx.array], mx.array],
    said: str,
) -> None:
    table = tiny_weights["model.embed_tokens.weight"]
    weights = tiny_weights | {"lm_head.weight": head(table)}
    source = make_checkpoint(weights=weights, tie_word_embeddings=True)
    with open_checkpoint(source) as checkpoint, pytest.warns(CheckpointWarning, match=said):
        assert Source.of(checkpoint).dead == {"lm_head.weight"}


def test_tensors_that_the_model_drops_for_another_reason_are_not_dead(
    make_checkpoint: Make, tiny_weights: Weights
) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": mx.ones(8)}
    folder = make_checkpoint(weights=tiny_weights | extra)
    with open_checkpoint(folder) as checkpoint, warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        source = Source.of(checkpoint)
    assert not source.dead
    assert source.users()[next(iter(extra))] == []


EXPERTS: dict[str, Any] = {
    "model_type": "mixtral", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8, "rms_norm_eps": 1e-6,
    "rope_theta": 1e4, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
"""As many experts as each has rows: the shape of a stack does not tell its axis."""


@pytest.mark.parametrize(("axis", "form"), [(0, "stacked"), (1, "computed")])
def test_experts_are_told_to_be_stacked_along_the_first_axis_by_their_bits(
    make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch, axis: int, form: str
) -> None:
    model = mixtral.Model(mixtral.ModelArgs.from_dict(EXPERTS))
    shapes = {name: array.shape for name, array in parameters(model).items()}
    keys = {name: mx.random.key(i) for i, name in enumerate(shapes)}
    weights = {n: mx.random.normal(shape, key=keys[n]) for n, shape in shapes.items()}
    stacked = {name: w for name, w in weights.items() if "switch_mlp" in name}
    apart = {f"{n}.{e}": w[e] for n, w in stacked.items() for e in range(4)}
    rest = {name: w for name, w in weights.items() if name not in stacked}
    source = make_checkpoint(weights=rest | apart, **EXPERTS)

    def sanitize(model: mixtral.Model, weights: Weights) -> Weights:
        own = {n: mx.stack([weights.pop(f"{n}.{e}") for e in range(4)], axis) for n in stacked}
        return weights | own

    monkeypatch.setattr(mixtral.Model, "sanitize", sanitize)
    with open_checkpoint(source) as checkpoint:
        traced = Source.of(checkpoint)
        for name, whole in stacked.items():
            layer = traced.layers[name]
            found = np.stack([*traced.matrices(layer)])
            assert layer.form == form
            assert np.array_equal(found, np.array(whole).swapaxes(0, axis))
