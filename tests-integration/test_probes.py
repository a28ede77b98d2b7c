"""Input Grams on mlx-lm's own models, and what they buy."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import llama, mixtral
from plastic_core import RankLayer, output_basis, projections
from plastic_export import load_model, load_tokenizer, text_windows
from plastic_runtime import gradient_factors, input_grams


@pytest.fixture(scope="module")
def windows(checkpoint: Path, calibration: Path) -> mx.array:
    text = calibration.read_text()
    return text_windows(load_tokenizer(checkpoint), text, length=64, limit=4)


def test_one_gram_per_input_site_is_the_mean_outer_product(
    checkpoint: Path, windows: mx.array
) -> None:
    model = load_model(checkpoint)
    model.set_dtype(mx.float32)
    grams = input_grams(model, [row[None] for row in windows])
    x = model.model.layers[0].input_layernorm(model.model.embed_tokens(windows))
    X = np.asarray(x.reshape(-1, x.shape[-1]), np.float64)
    q, k, v = (grams[f"model.layers.0.self_attn.{p}_proj"] for p in "qkv")
    assert q.matrix is k.matrix is v.matrix
    assert q.tokens == X.shape[0] == windows.size
    limit = 10 * X.shape[1] * np.finfo(np.float32).eps * np.linalg.norm(q.matrix, 2)
    assert np.abs(q.matrix - X.T @ X / len(X)).max() <= limit
    linears = {p.path for p in projections(model)}
    assert linears <= grams.keys()


def test_the_weighted_basis_has_the_smaller_error_on_the_outputs(
    checkpoint: Path, windows: mx.array
) -> None:
    model = load_model(checkpoint)
    model.set_dtype(mx.float32)
    path = "model.layers.2.mlp.down_proj"
    gram = input_grams(model, [windows], paths=[path])[path].matrix
    W = np.asarray(model.model.layers[2].mlp.down_proj.weight, np.float64)
    errors = []
    for weights in (gram, None):
        U = output_basis(W, gram=weights).U[:, :40].astype(np.float64)
        D = W - U @ (U.T @ W)
        errors.append(np.trace(D @ gram @ D.T))
    assert errors[0] < 0.9 * errors[1]


TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "vocab_size": 50,
}


def build(family: str) -> nn.Module:
    mx.random.seed(0)
    if family == "llama":
        return llama.Model(llama.ModelArgs.from_dict(TINY | {"model_type": "llama"}))
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "rope_theta": 1e4}
    return mixtral.Model(mixtral.ModelArgs.from_dict(TINY | experts | {"model_type": "mixtral"}))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_probing_leaves_the_model_as_it_was(family: str) -> None:
    model = build(family)
    tokens = mx.array([[3, 1, 4, 1, 5]])
    before, types = model(tokens), [type(m) for m in model.modules()]
    assert input_grams(model, [tokens])
    assert [type(m) for m in model.modules()] == types
    assert np.array_equal(np.asarray(model(tokens)), np.asarray(before))


def test_the_dense_gradient_is_that_of_the_weight_itself() -> None:
    model = build("llama")
    tokens = mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    up = model.model.layers[0].mlp.up_proj

    def loss() -> mx.array:
        return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean")

    model.freeze()
    up.unfreeze()
    _, tree = nn.value_and_grad(model, loss)()
    wanted = np.asarray(tree["model"]["layers"][0]["mlp"]["up_proj"]["weight"], np.float64)
    model.model.layers[0].mlp.up_proj = RankLayer.from_linear(up, 2, keep_base=True)
    found = gradient_factors(model, loss)["model.layers.0.mlp.up_proj"].dense()
    limit = 10 * max(wanted.shape) * np.finfo(np.float32).eps * np.linalg.norm(wanted, 2)
    assert np.abs(found - wanted).max() <= limit
