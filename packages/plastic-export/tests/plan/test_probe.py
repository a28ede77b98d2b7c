"""A change of one layer, measured: what it does to the model, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.models.mixtral import Model as Mixtral
from mlx_lm.models.mixtral import ModelArgs as MixtralArgs
from plastic_export.plan.probe import PriceProbe, WeightChange, probed_rows
from plastic_runtime.measure import intercepted

PATH = "model.layers.1.mlp.up_proj"


def log_softmax(logits: mx.array) -> np.ndarray[Any, np.dtype[np.float64]]:
    x = np.asarray(logits.astype(mx.float32), np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def mean_divergence(log_q: Any, log_p: Any) -> float:
    """KL(q || p) by its definition, the mean over all tokens."""
    return float((np.exp(log_q) * (log_q - log_p)).sum(axis=-1).mean())


@pytest.fixture(scope="module")
def model() -> nn.Module:
    args = ModelArgs(
        model_type="llama",
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        vocab_size=40,
    )
    mx.random.seed(0)
    made = Model(args)
    made.eval()
    return made


@pytest.fixture(scope="module")
def tokens() -> mx.array:
    return mx.random.randint(0, 40, (3, 20), key=mx.random.key(1))


def test_a_divergence_is_that_of_the_model_with_the_changed_weight(
    model: nn.Module, tokens: mx.array
) -> None:
    layer = model.layers[1].mlp.up_proj
    kept = layer.weight
    change = 0.05 * mx.random.normal(kept.shape, key=mx.random.key(2))
    before = dict(tree_flatten(model.parameters()))
    found = PriceProbe(model, tokens).divergence([WeightChange(PATH, np.asarray(change))])
    after = dict(tree_flatten(model.parameters()))
    assert all(before[name] is after[name] for name in before | after)
    log_q = log_softmax(model(tokens[:, :-1]))
    layer.weight = kept + change
    log_p = log_softmax(model(tokens[:, :-1]))
    layer.weight = kept
    wanted = mean_divergence(log_q, log_p)
    assert wanted > 1e-4
    assert found == pytest.approx(wanted, rel=1e-3)


def test_a_packed_layer_can_be_probed(model: nn.Module, tokens: mx.array) -> None:
    change = np.full((64, 32), 0.01, np.float32)
    packed = nn.QuantizedLinear.from_linear(model.layers[1].mlp.up_proj, 32, 8)
    kept, model.layers[1].mlp.up_proj = model.layers[1].mlp.up_proj, packed
    probe = PriceProbe(model, tokens)
    assert probe.divergence([WeightChange(PATH, change)]) > 1e-6
    assert probe.divergence([WeightChange(PATH, 0 * change)]) == pytest.approx(0, abs=1e-7)
    model.layers[1].mlp.up_proj = kept


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("room", [1, 10**9])
def test_changes_of_several_layers_are_measured_together(
    model: nn.Module, tokens: mx.array, first: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plastic_export.plan.probe.KEPT_BYTES", room)
    layers = model.layers[first].mlp.down_proj, model.layers[1].self_attn.q_proj
    paths = f"model.layers.{first}.mlp.down_proj", "model.layers.1.self_attn.q_proj"
    kept = [layer.weight for layer in layers]
    changes = [0.05 * mx.random.normal(W.shape, key=mx.random.key(i)) for i, W in enumerate(kept)]
    found = PriceProbe(model, tokens).divergence(
        [
            WeightChange(path, np.asarray(change))
            for path, change in zip(paths, changes, strict=True)
        ]
    )
    log_q = log_softmax(model(tokens[:, :-1]))
    for layer, change in zip(layers, changes, strict=True):
        layer.weight = layer.weight + change
    log_p = log_softmax(model(tokens[:, :-1]))
    for layer, weight in zip(layers, kept, strict=True):
        layer.weight = weight
    assert found == pytest.approx(mean_divergence(log_q, log_p), rel=1e-3)


def test_blocks_before_the_first_changed_one_are_not_run(
    model: nn.Module, tokens: mx.array
) -> None:
    probe, ran = PriceProbe(model, tokens), list[str]()

    def watched(path: str, call: Any, x: mx.array) -> mx.array:
        ran.append(path)
        y: mx.array = call(x)
        return y

    layers = {f"model.layers.{i}.mlp.up_proj": model.layers[i].mlp.up_proj for i in (0, 1)}
    change = WeightChange("model.layers.1.mlp.down_proj", np.full((32, 64), 0.01, np.float32))
    with intercepted(layers, watched):
        probe.divergence([change])
    assert set(ran) == {"model.layers.1.mlp.up_proj"}


@pytest.mark.parametrize("is_chain", [True, False])
def test_block_by_block_the_divergence_is_that_of_all_changes_at_once(
    model: nn.Module, tokens: mx.array, is_chain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["model.embed_tokens"]
    paths += [f"model.layers.{i}.mlp.{kind}_proj" for i in (0, 1) for kind in ("down", "up")]
    weights = {path: dict(model.named_modules())[path].weight for path in paths}
    changes = {
        path: WeightChange(path, 0.05 * np.asarray(mx.random.normal(W.shape, key=mx.random.key(i))))
        for i, (path, W) in enumerate(weights.items())
    }
    if not is_chain:
        monkeypatch.setattr("plastic_export.plan.probe.BlockChain.of", lambda *_: None)
    probe, asked = PriceProbe(model, tokens[:2], tokens[2:]), list[list[str]]()

    def of(wanted: list[str]) -> list[WeightChange]:
        asked.append(wanted)
        return [changes[path] for path in wanted]

    found = probe.token_divergences(paths, of)
    assert found.shape == (3, 19)
    for some, windows in ((found[:2], tokens[:2]), (found, tokens)):
        wanted = PriceProbe(model, windows).divergence([*changes.values()])
        assert some.mean() == pytest.approx(wanted, rel=1e-5)
    assert probe.divergence([*changes.values()]) == pytest.approx(found[:2].mean(), rel=1e-5)
    assert [len(some) for some in asked] == ([1, 2, 2] if is_chain else [5])


@given(windows=st.integers(1, 2000), calibrated=st.integers(1, 2000), wanted=st.integers(1, 100))
def test_windows_that_are_not_calibrated_on_come_first(
    windows: int, calibrated: int, wanted: int
) -> None:
    rows = probed_rows(windows, calibrated, wanted)
    taken = min(windows, calibrated)
    used = {i * windows // taken for i in range(taken)}
    assert len(set(rows)) == len(rows) == min(wanted, windows - taken or taken)
    assert all(0 <= row < windows for row in rows)
    assert list(rows) == sorted(rows)
    assert taken == windows or used.isdisjoint(rows)


@pytest.mark.parametrize("tied", [False, True])
def test_a_change_of_an_embedding_is_seen_in_all_its_uses(tokens: mx.array, tied: bool) -> None:
    mx.random.seed(1)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=32,
            num_hidden_layers=1,
            intermediate_size=64,
            num_attention_heads=4,
            rms_norm_eps=1e-6,
            vocab_size=40,
            tie_word_embeddings=tied,
        )
    )
    model.eval()
    layer = model.model.embed_tokens
    change = 0.05 * mx.random.normal(layer.weight.shape, key=mx.random.key(2))
    found = PriceProbe(model, tokens).divergence(
        [WeightChange("model.embed_tokens", np.asarray(change))]
    )
    log_q = log_softmax(model(tokens[:, :-1]))
    layer.weight = layer.weight + change
    log_p = log_softmax(model(tokens[:, :-1]))
    wanted = mean_divergence(log_q, log_p)
    assert found == pytest.approx(wanted, rel=1e-3)


def test_a_change_of_one_expert_is_that_expert_s_alone(tokens: mx.array) -> None:
    mx.random.seed(1)
    args = MixtralArgs(
        model_type="mixtral",
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    model = Mixtral(args)
    model.eval()
    path = "model.layers.0.block_sparse_moe.switch_mlp.down_proj"
    layer = model.model.layers[0].block_sparse_moe.switch_mlp.down_proj
    change = 0.2 * mx.random.normal(layer.weight.shape[1:], key=mx.random.key(2))
    parts = [WeightChange(path, np.asarray(change) / 2, 1)] * 2  # effects of several are added
    found = PriceProbe(model, tokens).divergence(parts)
    log_q = log_softmax(model(tokens[:, :-1]))
    layer.weight = mx.stack([layer.weight[0], layer.weight[1] + change, layer.weight[2]])
    log_p = log_softmax(model(tokens[:, :-1]))
    wanted = mean_divergence(log_q, log_p)
    assert wanted > 1e-5
    assert found == pytest.approx(wanted, rel=1e-2)
