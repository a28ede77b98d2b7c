"""Embeddings, tied weights, experts and wide sides: planned, priced, written, loaded by mlx-lm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.utils import _get_classes, load_adapters
from mlx_lm.utils import load_model as stock_load
from plastic_core.files import BusyError, FormatError, load_safetensors
from plastic_core.linalg import Float64
from plastic_core.testing import same_bits
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.compression.plan_file import LossPlan, read_plan
from plastic_export.compression.planning import plan_checkpoint
from plastic_export.compression.selecting import plannable
from plastic_export.compression.verification import verify
from plastic_export.compression.writer import Compressed
from plastic_export.format.table import PLAN_FORMATS
from plastic_export.model.load import load_model
from plastic_export.plan.budgets import Budget
from plastic_export.plan.choices import Choices
from plastic_export.plan.gram_uses import (
    INPUT_SHRINKAGE,
    OUTPUT_SHRINKAGE,
    Uses,
    combined_grams,
    gram_roots,
    smoothed,
)
from plastic_export.plan.offers import BitsPlan, Kind
from plastic_export.plan.pricing import rounded_offers
from plastic_export.plan.storing import rounded
from plastic_export.reporting.plan.made import present_plan
from plastic_export.source.layers import is_router
from plastic_export.source.source import Source
from plastic_runtime import Gram, GramFile, LossGrams

Make = Callable[..., Path]
EMBEDDING = "model.embed_tokens"
TOKENS = 16 * 24
FEW = {
    "mixed": Choices(bits=(2, 4)),
    "corrected": Choices(bits=(2,), factor_bits=(8,), bare=True),
    "adapter": Choices(bits=(2,), factor_bits=(16,), ranks=(4,)),
}
"""What is offered, so that plans take no time."""


@pytest.fixture
def tied(make_readable: Make, tiny_weights: dict[str, mx.array]) -> Path:
    """A checkpoint whose embedding is the output layer too."""
    weights = {n: w for n, w in tiny_weights.items() if n != "lm_head.weight"}
    return make_readable("tied", weights=weights, tie_word_embeddings=True)


def planned(source: Path, text: Path, format: str = "mixed", **options: Any) -> LossPlan:
    """A plan beside the text."""
    settings: dict[str, Any] = {"budgets": [3.5], "choices": FEW[format], "force": True} | options
    settings.setdefault("calibration", Calibration(text, window=24, windows=16))
    file = text.with_name("plan.json")
    return plan_checkpoint(source, file, format=format, **settings)


def written(source: Path, text: Path) -> Compressed[BitsPlan]:
    return execute_plan(source, text.with_name("out"), text.with_name("plan.json"))


def arrays_of(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))  # type: ignore[no-untyped-call]


def grams_beside(text: Path) -> GramFile:
    return GramFile(text.with_name("plan.grams.npz"))


@pytest.mark.parametrize("format", PLAN_FORMATS)
@pytest.mark.parametrize("kind", ["tied", "apart"])
def test_an_embedding_is_packed_in_every_format_and_stock_mlx_lm_loads_it(
    tied: Path, make_readable: Make, text: Path, format: str, kind: str
) -> None:
    source = tied if kind == "tied" else make_readable()
    plan = planned(source, text, format, budgets=[3.0])
    offers = {m.name: m.offers for m in plan.matrices}[f"{EMBEDDING}.weight"]
    assert {o.rank for o in offers} == {0}
    offer = plan.budgets[0].chosen[f"{EMBEDDING}.weight"]
    assert offer.bits is not None
    result = written(source, text)
    assert verify(result.out) == []
    assert result.plan.bits_per_weight <= 3.0
    model, config = stock_load(result.out, trust_remote_code=result.needs_model_file)
    packing = {"bits": offer.bits, "group_size": offer.group_size}
    assert config["quantization"][EMBEDDING] == packing
    assert isinstance(model.model.embed_tokens, nn.QuantizedEmbedding)
    if result.adapter_bytes:
        load_adapters(model, str(result.out / "adapters"))
    ours, tokens = load_model(result.out), mx.array([[1, 5, 9, 2]])
    assert mx.array_equal(model(tokens), ours(tokens)).item()


@pytest.mark.parametrize("kind", ["tied", "apart"])
def test_the_cost_of_an_embedding_is_that_of_all_its_uses(
    tied: Path, make_readable: Make, text: Path, kind: str
) -> None:
    source = tied if kind == "tied" else make_readable()
    plan = planned(source, text, thorough=True)
    offered = next(m for m in plan.matrices if m.matrix.kind == "embedding")
    m = offered.matrix
    with open_checkpoint(source) as checkpoint, grams_beside(text) as grams:
        E = checkpoint.matrix(m.name)
        uses, lookup = Uses(m, grams).of(), grams[EMBEDDING]
        assert len(uses) == (2 if kind == "tied" else 1)
        counts = np.rint(lookup.input.matrix[:, 0, 0] * TOKENS)
        assert counts.sum() == TOKENS
        for offer in offered.offers[:-1]:
            assert offer.bits is not None
            shared, size = gram_roots(combined_grams(uses)), offer.group_size
            D = E - rounded(E, offer.bits, shared, m, group_size=size).dequantized()
            cost = half_trace(lookup.output.matrix, D, np.diag(smoothed(counts)))
            if kind == "tied":
                R, C = (g.matrix for g in grams[f"{EMBEDDING}.as_linear"])
                cost += half_trace(R, D, C)
            assert offer.cost == pytest.approx(offered.price_factors[offer.bits] * cost, rel=1e-5)


def half_trace(R: Float64, D: np.ndarray, C: Float64) -> float:
    """The cost of a change of a weight, its Grams shrunk and damped as prices have them."""
    shares = ((R, INPUT_SHRINKAGE), (C, OUTPUT_SHRINKAGE))
    R, C = ((1 - s) * A + s * A * np.eye(len(A)) for A, s in shares)
    R, C = (A + 1e-2 * np.trace(A) / len(A) * np.eye(len(A)) for A in (R, C))
    return float(np.trace(C @ D @ R @ D.T)) / 2


def test_predicted_costs_of_an_embedding_are_about_the_divergence(tied: Path, text: Path) -> None:
    plan = planned(tied, text, choices=Choices(bits=(5,)), include=[EMBEDDING], budgets=[5.6])
    result = written(tied, text)
    models = [load_model(folder) for folder in (tied, result.out)]
    for model in models:
        model.set_dtype(mx.float32)
    with grams_beside(text) as grams:
        frequency = grams[EMBEDDING].input.matrix[:, 0, 0]
    tokens = np.random.default_rng(7).choice(80, (64, 24), p=frequency / frequency.sum())
    p, q = (nn.log_softmax(model(mx.array(tokens)), axis=-1) for model in models)
    measured = float((mx.exp(p) * (p - q)).sum(axis=-1).mean())
    assert 0.6 < measured / plan.budgets[0].cost < 1.6  # 1.0 here


def test_every_token_is_given_some_probability() -> None:
    found = smoothed(np.array([6.0, 2.0, 0.0, 0.0]))
    np.testing.assert_allclose(found, [0.6, 0.2, 0.1, 0.1])
    np.testing.assert_allclose(smoothed(np.array([1.0, 3.0])), [0.25, 0.75])


def test_embeddings_can_be_left_out(make_readable: Make, text: Path) -> None:
    source = make_readable()
    with open_checkpoint(source) as checkpoint:
        everything = plannable(Source.of(checkpoint))
        names = {m.name for m in everything}
        assert {m.name for m in everything if m.kind == "embedding"} == {f"{EMBEDDING}.weight"}
        for left in (
            plannable(Source.of(checkpoint), embeddings=False),
            plannable(Source.of(checkpoint), exclude=["*embed*"]),
        ):
            assert {m.name for m in left} == names - {f"{EMBEDDING}.weight"}
    plan = planned(source, text, embeddings=False)
    assert plan.left == (f"{EMBEDDING}.weight",)
    assert plan.budgets[0].weights == sum(m.weights for m in everything) - 80 * 64


def test_sides_that_no_group_divides_are_named_with_their_bytes(
    make_llama: Make, text: Path
) -> None:
    source = make_llama(intermediate_size=100)
    plan = planned(source, text)
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)]
    assert {m.name: m.nbytes for m in plan.skipped} == dict.fromkeys(names, 2 * 64 * 100)
    lines = present_plan(plan, Path("plan.json"), None).lines
    expected = "skipped    2 of 25.0 KiB, no group divides its 100 inputs: "
    expected += ", ".join(m.name for m in plan.skipped)
    assert expected in lines
    assert read_plan(text.with_name("plan.json")).skipped == plan.skipped
    verify(written(source, text).out)


def test_a_checkpoint_of_such_sides_alone_is_refused_with_a_way_that_works(
    make_llama: Make, text: Path
) -> None:
    source = make_llama(hidden_size=80, head_dim=20, intermediate_size=100)
    with pytest.raises(ValueError, match=r"groups of 32 .* no group divides the 80 inputs"):
        planned(source, text)
    compress(source, text.with_name("by_rank"), keep=0.8)


@pytest.mark.parametrize(
    "sides", [{"intermediate_size": 1000}, {"hidden_size": 80, "head_dim": 20}]
)
def test_a_size_that_such_sides_forbid_is_refused_before_the_calibration(
    make_llama: Make, text: Path, sides: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_llama(**sides)
    third = (source / "model.safetensors").stat().st_size // 3

    def too_late(*words: object, **options: object) -> None:
        pytest.fail("it was calibrated first")

    with monkeypatch.context() as patched:
        patched.setattr("plastic_export.compression.planning.measure_loss_grams", too_late)
        with pytest.raises(ValueError, match=r"`size` must be at least .* bytes") as refused:
            planned(source, text, budgets=[Budget("size", third)])
    least = int(str(refused.value).partition("at least ")[2].split()[0].replace(",", ""))
    assert planned(source, text, budgets=[Budget("size", least)]).budgets[0].nbytes < least


class Lookup(llama.Model):
    """A Llama that takes the weight of its head and does not call it."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        hidden: mx.array = self.model(inputs, cache)
        return hidden @ self.lm_head.weight.T


def test_layers_that_nothing_measured_are_named_with_their_bytes(
    make_readable: Make, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "Model", Lookup)
    plan = planned(make_readable(), text)
    assert plan.skipped == (("lm_head.weight", 80 * 64 * 2, "nothing was measured there"),)
    assert "lm_head.weight" in plan.left
    lines = present_plan(plan, Path("plan.json"), None).lines
    assert "skipped    1 of 10.0 KiB, nothing was measured there: lm_head.weight" in lines
    with pytest.raises(ValueError, match="nothing was measured there of the 1 layers"):
        planned(make_readable("again"), text, include=["lm_head"])


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 80,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
FAMILIES = ["mixtral", "qwen2_moe", "qwen3_moe"]
EXPERTS = 4


def mixture(family: str) -> dict[str, mx.array]:
    """The weights of a small random mixture of experts, as mlx-lm names them, in bfloat16."""
    kind, args = _get_classes({"model_type": family})
    model = kind(args.from_dict({"model_type": family} | SIZES))
    return random_like(arrays_of(model))


def one_by_one(weights: Mapping[str, mx.array], family: str) -> dict[str, mx.array]:
    """The same with a tensor per expert, as Hugging Face has it."""
    found = {}
    for name, array in weights.items():
        path, _, rest = name.partition(".switch_mlp.")
        if not rest:
            found[name] = array
            continue
        projection = rest.removesuffix(".weight")
        leaf = MIXTRAL[projection] if family == "mixtral" else projection
        for e in range(EXPERTS):
            found[f"{path}.experts.{e}.{leaf}.weight"] = array[e]
    return found


@pytest.fixture
def make_mixture(make_readable: Make) -> Make:
    """``make(family, apart)``: such a checkpoint, its experts stacked or one by one."""

    def make(family: str, apart: bool) -> Path:
        weights = mixture(family)
        stored = one_by_one(weights, family) if apart else weights
        return make_readable(f"{family}-{apart}", weights=stored, model_type=family, **SIZES)

    return make


def stacks(source: Source) -> dict[str, Any]:
    return {n: m for n, m in source.layers.items() if m.kind == "experts"}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_found_however_they_are_stored(
    make_mixture: Make, family: str, apart: bool
) -> None:
    with open_checkpoint(make_mixture(family, apart)) as checkpoint:
        source = Source.of(checkpoint)
        found = stacks(source)
        assert len(found) == 2 * 3
        whole = mixture(family)
        for name, layer in found.items():
            assert layer.form == ("stacked" if apart else "copied")
            experts = np.stack([*source.matrices(layer)])
            assert np.array_equal(experts, np.asarray(whole[name].astype(mx.float32)))
        names = {m.name for m in plannable(source)}
    assert found.keys() <= names
    assert not any(name.endswith(("gate.weight", "gate_inp.weight")) for name in names)


@pytest.mark.parametrize(
    ("family", "apart", "format"),
    [("mixtral", True, "mixed"), ("mixtral", False, "adapter"), ("qwen2_moe", True, "corrected")],
)
def test_every_expert_is_rounded_under_its_own_grams_and_stock_mlx_lm_loads_them(
    make_mixture: Make, text: Path, family: str, apart: bool, format: str
) -> None:
    source = make_mixture(family, apart)
    choices = replace(FEW[format], bits=(2,))
    plan = planned(source, text, format, budgets=[3.2], choices=choices)
    result = written(source, text)
    assert verify(result.out) == []
    after = {
        name: array
        for file in result.out.glob("model*.safetensors")
        for name, array in load_safetensors(file).items()
    }
    with open_checkpoint(source) as checkpoint, grams_beside(text) as grams:
        traced = Source.of(checkpoint)
        for m in (offered.matrix for offered in plan.matrices):
            offer = plan.budgets[0].chosen[m.name]
            if m.kind != "experts":
                continue
            assert (offer.rank, offer.nbytes % EXPERTS) == (0, 0)
            if offer.bits is None:
                continue
            for e, W in enumerate(traced.matrices(traced.layers[m.name])):
                roots, size = gram_roots(Uses(m, grams).of(e)[0]), offer.group_size
                expected = rounded(W, offer.bits, roots, m, group_size=size)
                for leaf, array in expected.arrays().items():
                    there = after[f"{m.name.removesuffix('weight')}{leaf}"][e]
                    assert mx.array_equal(there, array).item()
        for name in (n for n in checkpoint.tensors if n.endswith("gate.weight")):
            assert mx.array_equal(after[name], checkpoint.read(name)).item()
    model, _ = stock_load(result.out, trust_remote_code=result.needs_model_file)
    if result.adapter_bytes:
        load_adapters(model, str(result.out / "adapters"))
    tokens = mx.array([[1, 5, 9, 2]])
    assert mx.array_equal(model(tokens), load_model(result.out)(tokens)).item()


@pytest.mark.parametrize("apart", [False, True])
def test_the_model_is_that_of_the_source_with_what_is_stored(
    make_mixture: Make, text: Path, apart: bool
) -> None:
    source = make_mixture("qwen3_moe", apart)
    planned(source, text, choices=Choices(bits=(8,)), budgets=[9])
    result = written(source, text)
    reference, model = load_model(source), load_model(result.out)
    tokens = mx.array([[1, 5, 9, 2, 40, 41, 42, 43]])
    for other in (reference, model):
        other.set_dtype(mx.float32)
    p, q = (nn.log_softmax(m(tokens), axis=-1) for m in (reference, model))
    # Where rounding sends a token to another expert it differs by more.
    assert 0 < np.median(np.asarray((mx.exp(p) * (p - q)).sum(axis=-1))) < 1e-3


def test_stacks_that_are_left_alone_are_copied_as_they_are(make_mixture: Make, text: Path) -> None:
    source = make_mixture("mixtral", True)
    planned(source, text, exclude=["*switch_mlp*"])
    result = written(source, text)
    before = load_safetensors(source / "model.safetensors")
    after = load_safetensors(result.out / "model.safetensors")
    experts = [name for name in before if ".experts." in name]
    assert experts
    assert all(same_bits(after[name], before[name]) for name in experts)
    loaded = arrays_of(stock_load(result.out)[0])
    for name, array in mixture("mixtral").items():
        if "switch_mlp" in name:
            assert same_bits(loaded[name], array)


STACK: list[tuple[str, Kind, int]] = [("model.layers.0.mlp.experts.up", "experts", 4)]


@pytest.mark.parametrize(
    ("path", "outputs", "scores"),
    [
        ("model.layers.0.mlp.gate", 64, True),  # by its name
        ("model.layers.0.mlp.router.layer", 4, True),
        ("model.layers.0.router.proj", 4, True),
        ("model.layers.0.mlp.shared_gate", 1, True),
        ("model.layers.0.self_attn.k_proj", 4, False),
        ("model.layers.0.mlp.up_proj", 64, False),
        ("model.layers.1.mlp.up_proj", 4, False),  # no experts there
        ("lm_head", 4, False),
    ],
)
def test_routers_are_known_by_what_they_do(path: str, outputs: int, scores: bool) -> None:
    assert is_router(path, outputs, STACK) == scores


def test_experts_that_no_token_reached_are_counted_and_given_the_grams_of_the_others(
    make_mixture: Make, text: Path
) -> None:
    source, file = make_mixture("mixtral", True), text.with_name("plan.json")
    few, choices = Calibration(text, window=2, windows=1), Choices(bits=(3,))
    plan = plan_checkpoint(source, file, calibration=few, budgets=[4], choices=choices)
    unreached = 0
    with grams_beside(text) as grams:
        for stack in (m.matrix for m in plan.matrices if m.matrix.kind == "experts"):
            path = stack.name.removesuffix(".weight")
            counts = [grams.count(f"{path}.{e}") for e in range(EXPERTS)]
            assert sum(counts) == 2 * 2  # two tokens, two experts for each
            own = [grams[f"{path}.{e}"] for e in range(EXPERTS)]
            R = sum(g.input.matrix * n for g, n in zip(own, counts, strict=True)) / 4
            C = sum(g.output.matrix for g in own) / 4
            for e in (e for e, count in enumerate(counts) if not count):
                (found,) = Uses(stack, grams).of(e)
                np.testing.assert_allclose(found.input.matrix, R, atol=1e-12)
                np.testing.assert_allclose(found.output.matrix, C, atol=1e-12)
                unreached += 1
    assert plan.calibration["unreached_experts"] == unreached > 0


@pytest.mark.parametrize("format", PLAN_FORMATS)
def test_grams_in_blocks_serve_every_format(make_readable: Make, text: Path, format: str) -> None:
    source = make_readable()
    plan = planned(source, text, format, widest=63)
    with grams_beside(text) as grams:
        assert {g.input.matrix.ndim for g in grams.values()} == {3}
    assert written(source, text).plan.cost == pytest.approx(plan.budgets[0].cost)


@pytest.mark.parametrize("format", PLAN_FORMATS)
def test_a_size_is_that_of_whole_files_and_never_exceeded(
    make_readable: Make, text: Path, format: str
) -> None:
    source, sizes = make_readable(), (60_000, 90_000)
    choices = replace(FEW[format], bits=(2, 3, 4, 6, 8))
    planned(source, text, format, budgets=[Budget("size", size) for size in sizes], choices=choices)
    for size in sizes:
        out = text.with_name(str(size))
        execute_plan(source, out, text.with_name("plan.json"), budget=f"{size} bytes")
        files = [*out.glob("model*.safetensors"), *out.glob("adapters/*.safetensors")]
        assert 0.97 * size < sum(file.stat().st_size for file in files) <= size


def test_a_second_plan_of_one_name_is_refused_while_the_first_is_made(
    make_readable: Make, text: Path
) -> None:
    source, refused = make_readable("source"), list[BusyError]()

    def second(items: Sequence[Any], description: str) -> Sequence[Any]:
        if description == "pricing":
            with pytest.raises(BusyError, match="in use by process") as raised:
                planned(source, text)
            refused.append(raised.value)
        return items

    made = planned(source, text, track=second)
    assert [error.filename for error in refused] == [str(text.with_name("plan.json"))]
    assert read_plan(text.with_name("plan.json")) == made
    assert not [path for path in text.parent.iterdir() if path.name.startswith(".plan")]


def test_a_plan_is_read_back_as_it_was(make_mixture: Make, text: Path) -> None:
    plan = planned(make_mixture("mixtral", True), text, budgets=[4])
    assert read_plan(text.with_name("plan.json")) == plan


def test_a_disk_without_room_for_the_grams_is_refused_before_the_work(
    make_readable: Make, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_readable()
    monkeypatch.setattr("plastic_export.compression.planning.measure_loss_grams", None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"\d+ bytes may be needed and 1000 are free.*grams"):
        planned(source, text)


def test_an_output_of_a_plan_needs_no_more_room_than_it_takes(
    make_readable: Make, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_readable()
    planned(source, text)
    size = (source / "model.safetensors").stat().st_size
    fixed = 2**17 + 2**12 * 21 + 2**14
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=size // 2 + fixed))
    execute_plan(source, text.with_name("OUT"), text.with_name("plan.json"))
    with pytest.raises(OSError, match=r"\d+ bytes may be needed and \d+ are free"):
        compress(source, text.with_name("RANK"), keep=0.5)


def test_plans_that_would_share_their_grams_are_refused(make_readable: Make, text: Path) -> None:
    calibration = Calibration(text, window=24, windows=16)
    with pytest.raises(ValueError, match=r"plan\.v1: the name of a plan ends in \.json"):
        plan_checkpoint(
            make_readable(), text.with_name("plan.v1"), calibration=calibration, budgets=[3.5]
        )


LFM2: dict[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": 80,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 64,
    "block_multiple_of": 32,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "block_ff_dim": 96,
    "layer_types": ["conv", "full_attention"],
}


def test_a_layer_of_a_kind_that_is_not_understood_is_named_and_copied(
    make_readable: Make, text: Path
) -> None:
    kind, args = _get_classes(LFM2)
    weights = random_like(arrays_of(kind(args.from_dict(LFM2))))
    plan = planned(make_readable("lfm2", weights=weights, **LFM2), text, budgets=[4])
    convolution = "model.layers.0.conv.conv.weight"
    assert plan.left == (convolution,)
    _, _, *lines = present_plan(plan, Path("plan.json"), Path("plan.png")).lines
    assert "1 left as they are: " + convolution in str(lines[0])
    result = written(text.with_name("lfm2"), text)
    after = load_safetensors(result.out / "model.safetensors")
    assert mx.array_equal(after[convolution], weights[convolution]).item()
    stock_load(result.out)


def random_like(arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Random bfloat16 weights that keep activations near one; ones for norms."""
    found = {}
    for number, (name, like) in enumerate(sorted(arrays.items())):
        noise = mx.random.normal(like.shape, key=mx.random.key(number))
        scaled = noise * like.shape[-1] ** -0.5 if like.ndim > 1 else mx.ones(like.shape)
        found[name] = scaled.astype(mx.bfloat16)
    return found


BLOCK = "model.layers.1"
DEAD: dict[str, tuple[list[str], list[str]]] = {
    "weight": (
        [f"{BLOCK}.mlp.up_proj"],
        [f"{BLOCK}.mlp.{name}_proj" for name in ("gate", "up", "down")],
    ),
    "norm": (
        [f"{BLOCK}.post_attention_layernorm"],
        [f"{BLOCK}.mlp.{name}_proj" for name in ("gate", "up", "down")],
    ),
    "block": (
        [f"{BLOCK}.self_attn.o_proj", f"{BLOCK}.mlp.down_proj"],
        [
            *(f"{BLOCK}.self_attn.{name}_proj" for name in "qkvo"),
            *(f"{BLOCK}.mlp.{name}_proj" for name in ("gate", "up", "down")),
        ],
    ),
    "head": (["lm_head"], [EMBEDDING, "lm_head", f"{BLOCK}.mlp.up_proj"]),
}
"""What is zero, and matrices whose change the loss does not notice for that reason."""


@pytest.mark.parametrize("format", PLAN_FORMATS)
@pytest.mark.parametrize("kind", DEAD)
def test_matrices_without_effect_cost_nothing_and_get_the_fewest_bytes(
    make_readable: Make, tiny_weights: dict[str, mx.array], text: Path, format: str, kind: str
) -> None:
    zeros, dead = DEAD[kind]
    weights = tiny_weights | {f"{p}.weight": 0 * tiny_weights[f"{p}.weight"] for p in zeros}
    source = make_readable("dead", weights=weights)
    plan = planned(source, text, format)
    offered = {m.name: m for m in plan.matrices}
    chosen = plan.budgets[0].chosen
    assert len(chosen) == 16
    for path in dead:
        smallest = offered[f"{path}.weight"].offers[0]
        assert smallest.cost == 0
        assert chosen[f"{path}.weight"].nbytes == smallest.nbytes
    if kind != "head":
        assert plan.budgets[0].cost > 0
    result = written(source, text)
    assert verify(result.out) == []
    tokens = mx.array([[1, 5, 9, 2]])
    assert mx.isfinite(load_model(result.out)(tokens)).all().item()


def test_a_tied_embedding_whose_use_is_free_is_priced_by_the_other_one(
    tied: Path, text: Path
) -> None:
    m = next(m for m in planned(tied, text).matrices if m.matrix.kind == "embedding").matrix
    with open_checkpoint(tied) as checkpoint, grams_beside(text) as grams:
        weight, (lookup, head) = checkpoint.matrix(m.name), Uses(m, grams).of()
    nothing = LossGrams(Gram(0 * lookup.input.matrix, 0), lookup.output)
    both, alone = (
        rounded_offers(weight, m, uses, FEW["mixed"]) for uses in ((nothing, head), (head,))
    )
    for ours, expected in zip(both, alone, strict=True):
        assert ours.cost == pytest.approx(expected.cost)
    assert both[0].cost > 0


def test_a_text_of_fewer_tokens_than_inputs_is_enough(make_readable: Make, text: Path) -> None:
    few = Calibration(text, window=4, windows=1)
    source = make_readable()
    plan = planned(source, text, "corrected", calibration=few)
    assert plan.budgets[0].cost > 0
    assert verify(written(source, text).out) == []


@pytest.mark.parametrize(
    "other",
    [
        {"calibration": {"windows": 8}},
        {"calibration": {"text": "other.txt"}},
        {"embeddings": False},
        {"exclude": ["lm_head"]},
    ],
    ids=["windows", "text", "embeddings", "exclude"],
)
def test_a_plan_made_of_something_else_is_replaced_with_its_grams(
    make_readable: Make, text: Path, other: dict[str, Any]
) -> None:
    source = make_readable()
    text.with_name("other.txt").write_text(text.read_text()[::-1])
    measured = {"text": "text.txt", "window": 24, "windows": 16} | other.get("calibration", {})
    measured["text"] = text.with_name(measured["text"])
    options = other | {"calibration": Calibration(**measured)}
    planned(source, text)
    first = text.with_name("plan.grams.npz").read_bytes()
    plan = planned(source, text, **options)
    assert text.with_name("plan.grams.npz").read_bytes() != first
    alone = plan_checkpoint(
        source, text.with_name("alone.json"), budgets=[3.5], choices=FEW["mixed"], **options
    )
    assert replace(alone, grams=plan.grams) == plan
    assert alone.grams[1] == plan.grams[1]
    assert verify(written(source, text).out) == []


def test_the_remedy_for_damaged_grams_works(make_readable: Make, text: Path) -> None:
    source, grams = make_readable(), text.with_name("plan.grams.npz")
    plan = planned(source, text)
    content = grams.read_bytes()
    grams.write_bytes(content[:1000])
    with pytest.raises(FormatError, match="make both again with `plastic plan --force`"):
        written(source, text)
    assert planned(source, text) == plan
    assert grams.read_bytes() == content
    assert verify(written(source, text).out) == []


def test_a_file_that_no_plan_stands_beside_and_is_no_grams_is_kept(
    make_readable: Make, text: Path
) -> None:
    foreign = text.with_name("plan.grams.npz")
    foreign.write_bytes(b"mine")
    with pytest.raises(FormatError, match="damaged or no file of Grams"):
        planned(make_readable(), text)
    assert foreign.read_bytes() == b"mine"


def test_an_interruption_after_the_calibration_says_what_goes_on(
    tied: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("plastic_export.compression.planning.price", interrupted)
        with pytest.raises(KeyboardInterrupt) as stopped:
            planned(tied, text, budgets=[4.0])
    waiting = grams, _ = [text.with_name(n) for n in ("plan.grams.npz", "plan.prices")]
    assert stopped.value.__notes__ == [f"{w}: the same command goes on with it" for w in waiting]
    before = grams.stat().st_mtime_ns
    assert planned(tied, text, budgets=[4.0]).budgets
    assert grams.stat().st_mtime_ns == before
