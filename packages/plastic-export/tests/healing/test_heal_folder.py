"""Healing without a model: the loop, its state, the gradients of the layers in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama
from mlx_lm.utils import _get_classes
from numpy.typing import NDArray
from plastic_core.files import FormatError, array_bytes
from plastic_core.linalg import on_cpu
from plastic_core.testing import EPS
from plastic_export.calibration.text import Calibration
from plastic_export.healing.distillation import Distillation, Split, Teacher
from plastic_export.healing.heal_folder import heal
from plastic_export.healing.loop import Arrays, HealingOptions, HealState, batch_rows, heal_values
from plastic_export.healing.state import StateFile
from plastic_export.healing.trainable import TrainedTensor, trainable, use_trainable_host_layers
from plastic_export.model.divergence import divergences
from plastic_export.model.numpy_attention import attend
from plastic_export.model.numpy_functions import sigmoid, use_numpy_functions
from plastic_export.model.plastic_model import QuantizedRows, Rows

T = TypeVar("T")
WINDOWS = 12


def tolerance(size: int, scale: float) -> float:
    """Of a float32 sum of ``size`` products of this size, in another order."""
    return 4 * EPS * size * scale


def same_bits(a: Mapping[str, mx.array], b: Mapping[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and np.array_equal(array_bytes(a[n]), array_bytes(b[n])) for n in a
    )


class Bowl:
    """Half the mean squared distance to targets, with gradients that differ from row to row."""

    def __init__(self, targets: Mapping[str, mx.array], *, uphill: bool = False) -> None:
        self.targets = targets
        self.sign = -1 if uphill else 1

    def gradient(self, values: Mapping[str, mx.array], rows: NDArray[np.intp]) -> Arrays:
        noise = 1 + 0.1 * float(np.cos(rows).mean())
        return {n: self.sign * noise * (v - self.targets[n]) for n, v in values.items()}

    def divergence(self, values: Mapping[str, mx.array]) -> float:
        return sum(float(mx.square(v - self.targets[n]).mean()) for n, v in values.items())


def arrays(seed: int = 0, *, shift: float = 0) -> dict[str, mx.array]:
    """Three tensors of very different sizes, two of them in bfloat16."""
    rng = np.random.default_rng(seed)
    sizes = {"a.scales": 1e-3, "a.biases": 1e-2, "b.lora_a": 10.0}
    found = {n: mx.array(s * (rng.standard_normal((4, 3)) + shift)) for n, s in sizes.items()}
    dtypes = [mx.bfloat16, mx.bfloat16, mx.float32]
    return {n: a.astype(d) for (n, a), d in zip(found.items(), dtypes, strict=True)}


def cut_at(step: int) -> Any:
    """A ``Track`` that is interrupted before the step of this number."""

    def track(items: Sequence[T], description: str) -> Iterable[T]:
        for item in items:
            if item == step:
                raise KeyboardInterrupt
            yield item

    return track


@given(
    windows=st.integers(1, 9), batch=st.integers(1, 20), steps=st.integers(1, 9), seed=st.just(3)
)
def test_every_window_is_seen_once_before_any_is_seen_again(
    windows: int, batch: int, steps: int, seed: int
) -> None:
    rows = np.concatenate([batch_rows(i, windows, batch, seed) for i in range(steps)])
    for start in range(0, len(rows) - windows + 1, windows):
        assert sorted(rows[start : start + windows]) == list(range(windows))


def test_another_seed_is_another_order() -> None:
    first, second = (batch_rows(0, 50, 50, seed) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_tensors_of_any_size_come_near_their_targets_at_one_rate() -> None:
    values, targets = arrays(), arrays(1, shift=0.5)
    options = HealingOptions(steps=200, batch=4, learning_rate=0.05)
    end = heal_values(Bowl(targets), values, WINDOWS, options)
    for name, value in end.best.items():
        start, stop = (
            float(mx.abs(a.astype(mx.float32) - targets[name].astype(mx.float32)).max())
            for a in (values[name], value)
        )
        assert stop < 0.05 * start, name
        assert value.dtype == values[name].dtype


def test_what_only_gets_worse_is_left_as_it_was_bit_for_bit() -> None:
    values = arrays()
    end = heal_values(Bowl(arrays(1), uphill=True), values, WINDOWS, HealingOptions(steps=20))
    assert same_bits(end.best, values)
    assert end.measured[-1][1] > end.measured[0][1]


def test_the_best_measured_is_kept_where_the_end_is_worse() -> None:
    class Turning(Bowl):
        """Its gradient turns uphill half way."""

        calls = 0

        def gradient(self, values: Mapping[str, mx.array], rows: NDArray[np.intp]) -> Arrays:
            self.calls += 1
            self.sign = 1 if self.calls <= 20 else -1
            return super().gradient(values, rows)

    task = Turning(arrays(1))
    end = heal_values(task, arrays(), WINDOWS, HealingOptions(steps=40, learning_rate=0.02))
    best = min(divergence for _, divergence in end.measured)
    assert task.divergence(end.best) == best
    assert end.measured[-1][1] > best


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    class Broken(Bowl):
        def gradient(self, values: Mapping[str, mx.array], rows: NDArray[np.intp]) -> Arrays:
            found = super().gradient(values, rows)
            return {n: g * math.nan for n, g in found.items()} if 0 in rows else found

    task = Broken(arrays(1))
    end = heal_values(
        task, arrays(), WINDOWS, HealingOptions(steps=20, batch=1, learning_rate=0.02)
    )
    assert math.isfinite(end.measured[-1][1])
    assert end.measured[-1][1] < end.measured[0][1]


def test_a_start_that_is_not_finite_is_refused() -> None:
    finite, infinite = ({"a.scales": mx.array([x])} for x in (1.0, math.inf))
    with pytest.raises(ValueError, match=r"must be finite, and 'a\.scales' is not"):
        heal_values(Bowl(finite), infinite, WINDOWS, HealingOptions())
    with pytest.raises(ValueError, match="not finite before the first step"):
        heal_values(Bowl(infinite), finite, WINDOWS, HealingOptions())


@pytest.mark.parametrize("step", [0, 1, 7, 10, 19])
def test_a_cut_run_ends_bit_for_bit_like_one_that_was_not(tmp_path: Path, step: int) -> None:
    task, options = Bowl(arrays(1)), HealingOptions(steps=20, batch=3)
    whole = heal_values(task, arrays(), WINDOWS, options)
    store = StateFile(tmp_path / "out.heal.safetensors", {"steps": 20})
    with pytest.raises(KeyboardInterrupt):
        heal_values(task, arrays(), WINDOWS, options, store=store, track=cut_at(step))
    again = heal_values(task, arrays(), WINDOWS, options, store=store)
    assert again.measured == whole.measured
    for part in ("masters", "first", "second", "best"):
        assert same_bits(getattr(again, part), getattr(whole, part)), part


def state() -> HealState:
    zeros = {"w": mx.zeros((2,))}
    return HealState(3, dict(zeros), dict(zeros), dict(zeros), dict(zeros), [(0, 1.0)])


def test_the_state_of_another_healing_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    file = tmp_path / "state"
    StateFile(file, {"text": "one", "steps": 5}).save(state())
    with pytest.raises(FormatError, match=r"had text 'one', this one has 'two'; .*delete"):
        StateFile(file, {"text": "two", "steps": 5}).load()


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    store = StateFile(tmp_path / "state", {})
    assert store.load() is None
    store.save(state())
    content = store.path.read_bytes()
    store.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match=r"state: its header takes \d+ bytes and only"):
        store.load()


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("batch", 0), ("seed", -1), ("learning_rate", 0.0)]
)
def test_an_option_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        HealingOptions(**{field: value})


def random(shape: tuple[int, ...], seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


class Holder(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer = layer

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.layer(x)
        return y


def layer_of(kind: str, bits: int) -> nn.Module:
    """An affine-quantised layer with 64 inputs and 96 outputs."""
    if kind == "rows":
        rows: nn.Module = Rows(random((64, 96), 0)).to_quantized(32, bits)
        return rows
    if kind == "embedding":
        table = nn.Embedding(96, 64)
        table.weight = random((96, 64), 0)
        embedding: nn.Module = table.to_quantized(32, bits)
        return embedding
    linear = nn.Linear(64, 96, bias=kind == "biased")
    linear.weight = random((96, 64), 0)
    if "bias" in linear:
        linear.bias = random((96,), 2)
    packed: nn.Module = linear.to_quantized(32, bits)
    return packed


def outputs_and_gradients(
    model: Holder, call: Callable[[mx.array], mx.array], x: mx.array, names: Sequence[str]
) -> tuple[mx.array, tuple[mx.array, ...]]:
    """The output, and the gradients in the input and in these parameters of the layer."""

    def total(*values: mx.array) -> mx.array:
        model.layer.update(dict(zip(names, values[1:], strict=True)))
        return (call(values[0]) * mx.cos(mx.arange(96))).sum()

    values = [x, *(model.layer[name] for name in names)]
    gradients = mx.grad(total, argnums=list(range(len(values))))(*values)
    model.layer.update(dict(zip(names, values[1:], strict=True)))
    y = call(x)
    mx.eval(y, gradients)
    return y, gradients


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("kind", ["plain", "biased", "rows", "embedding"])
def test_packed_layers_have_the_outputs_and_gradients_of_mlx(kind: str, bits: int) -> None:
    stock, host = Holder(layer_of(kind, bits)), Holder(layer_of(kind, bits))
    names = ["scales", "biases"]
    wanted = {f"layer.{name}": TrainedTensor(f"layer.{name}", 2.0 ** (1 - bits)) for name in names}
    assert trainable(host) == wanted
    use_trainable_host_layers(host, {f"layer.{name}" for name in names})
    assert type(host.layer) is not type(stock.layer)
    x = random((2, 3, 64), 1)
    compared = [
        outputs_and_gradients(m, m.layer.as_linear if kind == "embedding" else m, x, names)
        for m in (stock, host)
    ]
    (y, gradients), (host_y, host_gradients) = compared
    for ours, theirs in zip((host_y, *host_gradients), (y, *gradients), strict=True):
        assert ours.shape == theirs.shape
        scale = float(mx.abs(theirs).max())
        assert float(mx.abs(ours - theirs).max()) <= tolerance(96, scale)


def test_an_embedding_looks_up_the_rows_of_mlx_and_passes_their_gradients_on() -> None:
    stock, host = Holder(layer_of("embedding", 3)), Holder(layer_of("embedding", 3))
    use_trainable_host_layers(host, {"layer.scales", "layer.biases"})
    ids = mx.array([[5, 0, 5], [95, 1, 2]])

    def total(scales: mx.array) -> mx.array:
        host.layer.update({"scales": scales})
        return host(ids).sum()

    gradient = mx.grad(total)(host.layer.scales)
    host.layer.update({"scales": stock.layer.scales})
    np.testing.assert_array_equal(np.asarray(host(ids)), np.asarray(stock(ids)))
    seen = np.unique(np.nonzero(np.asarray(gradient))[0])
    np.testing.assert_array_equal(seen, [0, 1, 2, 5, 95])


@given(bare=st.booleans(), rank=st.integers(1, 5))
def test_plain_factors_have_the_gradients_of_mlx(bare: bool, rank: int) -> None:
    weight = random((96, rank) if bare else (rank, 96), 0)
    layers = []
    for _ in range(2):
        layer: nn.Module = nn.Linear(rank, 96, bias=False) if bare else Rows(weight)
        layer.update({"weight": weight})
        layers.append(Holder(layer))
    use_trainable_host_layers(layers[1], {"layer.weight"})
    assert type(layers[0].layer) is not type(layers[1].layer)
    x = random((2, 3, rank), 1)
    (y, gradients), (host_y, host_gradients) = (
        outputs_and_gradients(m, m, x, ["weight"]) for m in layers
    )
    for ours, theirs in zip((host_y, *host_gradients), (y, *gradients), strict=True):
        assert float(mx.abs(ours - theirs).max()) <= tolerance(96, float(mx.abs(theirs).max()))


def test_a_layer_that_is_not_affine_is_not_trained() -> None:
    linear = nn.Linear(64, 96)
    assert trainable(Holder(linear.to_quantized(32, 4, "mxfp4"))) == {}
    assert trainable(Holder(linear)) == {}
    assert type(QuantizedRows(random((4, 64), 0), 32, 4, "affine")) is QuantizedRows


@given(
    groups=st.integers(1, 2),
    repeats=st.integers(1, 3),
    length=st.integers(1, 6),
    past=st.integers(0, 3),
    mask=st.sampled_from([None, "causal", "boolean"]),
)
def test_attention_has_the_gradients_of_mlx(
    groups: int, repeats: int, length: int, past: int, mask: str | None
) -> None:
    keys = length + past
    seen: Any = mask
    if mask == "boolean":
        seen = (random((length, keys), 7) > 0) | (mx.arange(keys) == 0)
    shapes = [(2, groups * repeats, length, 4), (2, groups, keys, 4), (2, groups, keys, 5)]
    operands = [random(shape, i) for i, shape in enumerate(shapes)]
    weight = random((2, groups * repeats, length, 5), 9)

    def total(attention: Callable[..., mx.array]) -> Callable[..., mx.array]:
        return lambda *qkv: (weight * attention(*qkv, scale=0.5, mask=seen)).sum()

    found, expected = (
        mx.grad(total(f), argnums=[0, 1, 2])(*operands)
        for f in (attend, mx.fast.scaled_dot_product_attention)
    )
    for ours, theirs in zip(found, expected, strict=True):
        atol = tolerance(8 * keys, 1 + float(mx.abs(theirs).max()))
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=atol)


def test_the_divergence_is_its_definition_and_its_gradient_the_difference() -> None:
    logits, other = 3 * random((2, 3, 50), 0), 3 * random((2, 3, 50), 1)
    log_q = other - mx.logsumexp(other, axis=-1, keepdims=True)
    p, q = (np.exp(np.asarray(x, np.float64)) for x in (logits, other))
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
    exact = (q * np.log(q / p)).sum(axis=-1)
    found = divergences(logits, log_q)
    np.testing.assert_allclose(np.asarray(found), exact, rtol=0, atol=tolerance(50, exact.max()))
    gradient = mx.grad(lambda x: divergences(x, log_q).sum())(logits)
    np.testing.assert_allclose(np.asarray(gradient), p - q, rtol=0, atol=tolerance(50, 1))


def test_a_token_that_both_exclude_harms_nothing() -> None:
    logits = mx.array([[0.0, 1.0, -math.inf]])
    log_q = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    value, gradient = mx.value_and_grad(lambda x: divergences(x, log_q).sum())(logits)
    assert float(value) == pytest.approx(0, abs=tolerance(3, 1))
    assert float(mx.abs(gradient).max()) <= tolerance(3, 1)


@pytest.mark.filterwarnings("error")
def test_the_sigmoid_has_the_values_and_gradients_of_mlx_everywhere() -> None:
    x = mx.array([-1e30, -200.0, -1.0, 0.0, 0.5, 20.0, 200.0])
    for ours, theirs in zip(
        mx.value_and_grad(lambda x: sigmoid(x).sum())(x),
        mx.value_and_grad(lambda x: mx.sigmoid(x).sum())(x),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=8 * EPS, atol=EPS)


@pytest.mark.skipif(not on_cpu(), reason="on a GPU all stays in MLX")
def test_activations_compute_in_numpy_inside_the_block_alone() -> None:
    own, x = mx.sigmoid, random((5,), 0)
    stock = nn.silu(x)
    with use_numpy_functions():
        assert mx.sigmoid is not own
        inside = nn.silu(x)
    assert mx.sigmoid is own
    np.testing.assert_allclose(np.asarray(inside), np.asarray(stock), rtol=8 * EPS)


@pytest.mark.skipif(not on_cpu(), reason="on a GPU all stays in MLX")
def test_a_block_within_a_block_leaves_the_outer_one_as_it_was() -> None:
    x, compiled = random((5,), 0), mx.compile(lambda x: mx.sigmoid(x))
    with use_numpy_functions():
        with use_numpy_functions():
            pass
        inside = compiled(x)  # which calls no function of Python once compilation is on again
        np.testing.assert_array_equal(np.asarray(inside), np.asarray(sigmoid(x)))
    np.testing.assert_allclose(np.asarray(mx.sigmoid(x)), np.asarray(inside), rtol=8 * EPS)


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
}
SIGMOID_ROUTERS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "rope_scaling": None,
    },
    "glm4_moe": {
        "head_dim": 32,
        "use_qk_norm": True,
        "attention_bias": False,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("uses", [1, 100])
@pytest.mark.parametrize("family", SIGMOID_ROUTERS)
def test_a_mixture_whose_router_is_a_sigmoid_is_healed(
    family: str, uses: int, tmp_path: Path
) -> None:
    kind, args = _get_classes({"model_type": family})
    config = {"model_type": family} | SIZES | SIGMOID_ROUTERS[family]
    tokens = mx.random.randint(0, 80, (8, 12), key=mx.random.key(1))
    mx.random.seed(0)
    original = kind(args.from_dict(config))
    model = kind(args.from_dict(config))
    model.update(original.parameters())
    nn.quantize(model, group_size=32, bits=3)
    names = trainable(model)
    parameters = dict(tree_flatten(model.parameters()))
    values = {name: parameters[name] for name in names}
    with Teacher(original.eval(), tokens, uses=uses, folder=tmp_path) as reference:
        task = Distillation(model.eval(), list(names), reference, tokens, Split.of(8))
        fractions = {name: trained.fraction for name, trained in names.items()}
        options = HealingOptions(steps=10, batch=7)
        end = heal_values(task, values, 7, options, fractions=fractions)
    kl = [divergence for _, divergence in end.measured]
    assert np.isfinite(kl).all()
    assert min(kl) < kl[0]


def tiny_llama() -> nn.Module:
    """Two blocks, quantised to four bits, embedding and head too; always the same weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 80}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    args = {"model_type": "llama", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    model: nn.Module = llama.Model(llama.ModelArgs.from_dict(sizes | heads | args))
    weights = dict(tree_flatten(model.parameters()))  # type: ignore[no-untyped-call]
    drawn = {n: 0.2 * random(w.shape, i) for i, (n, w) in enumerate(sorted(weights.items()))}
    model.update(tree_unflatten([(n, w) for n, w in drawn.items() if w.ndim > 1]))
    nn.quantize(model, group_size=32, bits=4)
    return model.eval()


def test_numpy_and_mlx_agree_on_the_divergence_of_a_model_and_its_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = mx.random.randint(0, 80, (8, 12), key=mx.random.key(1))
    names = list(trainable(tiny_llama()))
    assert len(names) == 2 * (7 * 2 + 2) + 2 * 2 + 1  # and the normalisations
    parameters = dict(tree_flatten(tiny_llama().parameters()))  # type: ignore[no-untyped-call]
    values = {n: parameters[n] * (1.05 if n.endswith("scales") else 1) for n in names}
    found = []
    for device in (mx.default_device(), mx.Device(mx.gpu)):
        monkeypatch.setattr(mx, "default_device", lambda device=device: device)
        with Teacher(tiny_llama(), tokens, uses=1, folder=tmp_path) as reference:
            task = Distillation(tiny_llama(), names, reference, tokens, Split.of(8))
            found.append((task.divergence(values), task.gradient(values, np.array([0, 3, 1]))))
    (kl, gradient), (other_kl, other) = found
    assert kl == pytest.approx(other_kl, rel=1e-4)
    assert kl > 1e-3
    for name in names:
        scale = float(mx.abs(other[name]).max())
        assert float(mx.abs(gradient[name] - other[name]).max()) <= tolerance(500, scale), name


class Table(nn.Module):
    """A model whose logits are looked up."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.table = 5 * random((20, 20), 0)

    def __call__(self, ids: mx.array) -> mx.array:
        return self.table[ids]


def test_the_reference_in_a_file_is_the_reference_and_leaves_nothing(tmp_path: Path) -> None:
    tokens = mx.random.randint(0, 20, (9, 7), key=mx.random.key(1))
    rows = np.array([8, 0, 3])
    with Teacher(Table(), tokens, uses=1, folder=tmp_path) as computed:
        exact = computed(rows)
    with Teacher(Table(), tokens, uses=100, folder=tmp_path) as kept:
        found = kept(rows)
        assert list(tmp_path.iterdir()) == []
    half = float(np.finfo(np.float16).eps) * float(mx.abs(exact).max())
    assert 0 < float(mx.abs(found - exact).max()) <= half
    assert float(mx.abs(mx.exp(found).sum(axis=-1) - 1).max()) <= tolerance(20, 1)
    assert float(divergences(found, exact).max()) < half**2


def test_every_eighth_window_is_held_out_and_seven_are_too_few() -> None:
    split = Split.of(17)
    assert split.held_out.tolist() == [7, 15]
    assert sorted([*split.training, *split.held_out]) == list(range(17))
    with pytest.raises(ValueError, match=r"needs 8 windows.*there are 7.*longer text"):
        Split.of(7)


def test_a_folder_that_is_not_of_this_package_is_not_replaced(
    checkpoint_folder: Path, text: Path
) -> None:
    said = r"it holds no plastic\.json, so .*; name a folder to write with --out"
    with pytest.raises(FormatError, match=said):
        heal(checkpoint_folder, checkpoint_folder, calibration=Calibration(text))
