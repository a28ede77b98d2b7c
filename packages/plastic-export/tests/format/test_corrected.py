"""Backbones and corrections in model files: every tensor, every byte, every output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.utils import _get_classes, quantize_model, save_config, save_model
from mlx_lm.utils import load_model as stock_load
from numpy.typing import NDArray
from plastic_core import Backbone, Correction
from plastic_core.factors import BITS
from plastic_core.files import MLX_DTYPES, FormatError, load_safetensors
from plastic_core.linalg import on_cpu, to_numpy
from plastic_core.rounding import UNPACKED
from plastic_core.testing import EPS, parameters, same_bits
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.checkpoint.tensors import module_path
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.plan_file import LossPlan
from plastic_export.compression.restoration import restore
from plastic_export.compression.verification import verify
from plastic_export.model import plastic_model
from plastic_export.model.load import load_for_inference, load_model
from plastic_export.plan.offers import Choice
from plastic_runtime.dialling import read_manifest

Make = Callable[..., Path]
MakePlan = Callable[..., LossPlan]
Priced = Callable[..., dict[str, tuple[Backbone | None, Correction | None]]]
Array = NDArray[Any]

TOKENS = mx.array([[1, 5, 9, 40, 17, 3]])
HEAD = "lm_head.weight"  # its 80 outputs allow no groups
BLOCKS = [f"model.layers.{i}." for i in range(2)]
LINEARS = [
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
]
NAMES = [block + linear for block in BLOCKS for linear in LINEARS]
FORMS: list[Choice] = [
    Choice(bits, 3 + i % 5, factor_bits)
    for i, (bits, factor_bits) in enumerate(product((None, *BITS), (4, 8, UNPACKED)))
]
MIXED: dict[str, Choice] = {  # one of each kind, the others as they are
    NAMES[0]: Choice(3, 5, 8),
    NAMES[1]: Choice(None, 7, 4),
    NAMES[4]: Choice(2, 3, UNPACKED),
    NAMES[6]: Choice(None, 9, UNPACKED),
    NAMES[7]: Choice(5),
    HEAD: Choice(4, 2, UNPACKED),
}


def every_form(first: int) -> dict[str, Choice]:
    """Fourteen forms from ``first`` on for the layers of the blocks, and one for the head."""
    forms = {name: FORMS[(first + i) % len(FORMS)] for i, name in enumerate(NAMES)}
    return forms | {HEAD: Choice(4, 5, UNPACKED)}


@pytest.fixture
def with_biases(make_checkpoint: Make, tiny_weights: dict[str, mx.array]) -> Make:
    """``make(dtype)``: the small Llama with a bias in every linear layer of its blocks."""

    def make(dtype: str) -> Path:
        weights = dict(tiny_weights)
        for i, name in enumerate(NAMES):
            size = weights[name].shape[:1]
            weights[f"{module_path(name)}.bias"] = mx.random.normal(size, key=mx.random.key(i))
        cast = {name: w.astype(MLX_DTYPES[dtype]) for name, w in weights.items()}
        return make_checkpoint(dtype, weights=cast, attention_bias=True, mlp_bias=True)

    return make


def tensors(
    path: str, backbone: Backbone | None, correction: Correction | None, *, bare: bool
) -> dict[str, mx.array]:
    """The tensors of the format, as its description names them."""
    parts: dict[str, Backbone | mx.array | None] = {path: backbone}
    if correction is not None:
        parts = {f"{path}.base": backbone, f"{path}.v": correction.V, f"{path}.u": correction.Ut}
    found: dict[str, mx.array] = {}
    for name, part in parts.items():
        if isinstance(part, Backbone):
            found |= {f"{name}.{leaf}": array for leaf, array in part.arrays().items()}
        elif part is not None:
            found[f"{name}.weight"] = part.T if bare and name.endswith(".u") else part
    return found


def dense(backbone: Backbone | None, correction: Correction | None) -> Array:
    """The sum of both in float64."""
    parts = [] if backbone is None else [backbone.dequantized().astype(np.float64)]
    if correction is not None:
        U, Vh = correction.operator().U, correction.operator().Vh
        parts.append(U.astype(np.float64) @ Vh.astype(np.float64))
    total: Array = np.sum(parts, axis=0)
    return total


def sizes(part: Backbone | mx.array) -> Array:
    """Bounds of the numbers whose sums are the entries: of ``|scale * code| + |bias|``."""
    entries: Array = np.abs(part.dequantized() if isinstance(part, Backbone) else to_numpy(part))
    if isinstance(part, Backbone):
        biases = np.repeat(np.abs(to_numpy(part.biases)), part.group_size, axis=1)
        entries = entries + 2 * biases
    return entries.astype(np.float64)


def rounding(
    x: Array, backbone: Backbone | None, correction: Correction | None, bias: Array
) -> Array:
    """A bound of the error of every output, whatever the order of the sums, in float32."""
    bound: Array = np.abs(bias)
    terms = x.shape[1] + 4
    if backbone is not None:
        bound = bound + np.abs(x) @ sizes(backbone).T
    if correction is not None:
        bound = bound + np.abs(x) @ sizes(correction.V).T @ sizes(correction.Ut)
        terms += correction.rank + 4
    bound *= terms * EPS
    return bound


def logits(model: nn.Module) -> Array:
    return to_numpy(model(TOKENS).astype(mx.float32))


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("dtype", "first"), [("BF16", 0), ("BF16", 14), ("F32", 0), ("F16", 7)])
def test_stock_mlx_lm_loads_what_was_priced_bit_for_bit_and_applies_the_sum(
    with_biases: Make, make_plan: MakePlan, priced: Priced, tmp_path: Path, dtype: str, first: int
) -> None:
    source, file, out = with_biases(dtype), tmp_path / "plan.json", tmp_path / "out"
    choices = every_form(first)
    plan = make_plan(source, file, choices)
    result = execute_plan(source, out, file)
    model, _ = stock_load(out, trust_remote_code=True)
    found, before = parameters(model), load_safetensors(source / "model.safetensors")
    modules: dict[str, Any] = dict(model.named_modules())
    for path, (backbone, correction) in priced(source, plan, file).items():
        bits, _, factor_bits, _ = choice = choices[f"{path}.weight"]
        bare = bits is None and factor_bits == UNPACKED
        own = tensors(path, backbone, correction, bare=bare)
        assert all(same_bits(found.pop(name), array) for name, array in own.items()), choice
        bias = before.get(f"{path}.bias")
        if bias is not None:
            holder = "base." if backbone is not None else "u." if bare else ""
            assert same_bits(found.pop(f"{path}.{holder}bias"), bias), choice
        shift = np.zeros(1) if bias is None else to_numpy(bias).astype(np.float64)
        x = np.random.default_rng(3).standard_normal((5, before[f"{path}.weight"].shape[1]))
        x = x.astype(np.float32).astype(np.float64)
        y = to_numpy(modules[path](mx.array(x.astype(np.float32))))
        off = np.abs(y - (x @ dense(backbone, correction).T + shift))
        assert (off <= rounding(x, backbone, correction, shift)).all(), choice
    assert all(same_bits(array, before[name]) for name, array in found.items())
    assert result.model_bytes == (out / "model.safetensors").stat().st_size


def test_a_sum_without_its_correction_is_beyond_the_tolerance(
    with_biases: Make, make_plan: MakePlan, priced: Priced, tmp_path: Path
) -> None:
    source, file = with_biases("BF16"), tmp_path / "plan.json"
    plan = make_plan(source, file, every_form(3))
    x = np.random.default_rng(3).standard_normal((5, 96))
    for backbone, correction in priced(source, plan, file).values():
        if backbone is not None and correction is not None:
            y = x[:, : backbone.shape[1]]
            lost = np.abs(y @ correction.operator().rows(slice(None)).T).max()
            assert lost > 10 * rounding(y, backbone, correction, np.zeros(1)).max()


@pytest.mark.parametrize("first", [0, 14])
def test_the_bytes_of_the_plan_are_those_in_the_files(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path, first: int
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    plan = make_plan(checkpoint_folder, file, every_form(first))
    result = execute_plan(checkpoint_folder, out, file)
    written = load_safetensors(out / "model.safetensors")
    for record in result.matrices:
        path = f"{module_path(record.name)}."
        nbytes = sum(array.nbytes for name, array in written.items() if name.startswith(path))
        assert nbytes == record.stored_bytes == plan.budgets[0].chosen[record.name].nbytes
    assert result.plan.nbytes == sum(record.stored_bytes for record in result.matrices)


def test_the_manifest_says_what_is_stored_and_how_far_it_is_from_the_source(
    checkpoint_folder: Path, make_plan: MakePlan, priced: Priced, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    plan = make_plan(checkpoint_folder, file, MIXED)
    result = execute_plan(checkpoint_folder, out, file)
    manifest = read_manifest(out)
    assert tuple(manifest.matrices.values()) == result.matrices
    assert manifest.options["format"] == "corrected"
    parts = priced(checkpoint_folder, plan, file)
    with open_checkpoint(checkpoint_folder) as checkpoint:
        for name, record in manifest.matrices.items():
            choice = MIXED.get(name, Choice(None))
            assert (record.bits, record.rank, record.factor_bits) == choice[:3]
            assert record.group_size == (0 if choice.bits is None else 64)
            W = checkpoint.matrix(name).astype(np.float64)
            backbone, correction = parts[module_path(name)]
            if backbone is None and correction is None:
                assert record.relative_error == record.spectral_error == 0
                continue
            E = W - dense(backbone, correction)
            assert record.predicted_kl == 1e-4
            assert record.relative_error == pytest.approx(
                np.linalg.norm(E) / np.linalg.norm(W), rel=1e-4
            )
            ratio = np.linalg.norm(E, 2) / np.linalg.norm(W, 2)
            assert 0.95 * ratio <= record.spectral_error <= 1.15 * ratio
    assert manifest.matrices[NAMES[0]].factor_group_sizes == (64, 64)
    assert manifest.matrices[NAMES[1]].factor_group_sizes == (32, 64)
    assert manifest.matrices[NAMES[4]].factor_group_sizes == (0, 0)


def test_the_configuration_names_every_packed_module_and_every_rank(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(checkpoint_folder, file, MIXED)
    execute_plan(checkpoint_folder, out, file)
    config = config_of(out)
    q, k, gate, down, other = (module_path(NAMES[i]) for i in (0, 1, 4, 6, 7))
    packed = {name: value for name, value in config["quantization"].items() if value}
    assert packed == {
        "group_size": packed["group_size"],
        "bits": packed["bits"],
        f"{q}.base": {"group_size": 64, "bits": 3},
        f"{q}.v": {"group_size": 64, "bits": 8},
        f"{q}.u": {"group_size": 64, "bits": 8},
        f"{k}.v": {"group_size": 64, "bits": 4},
        f"{k}.u": {"group_size": 32, "bits": 4},
        f"{gate}.base": {"group_size": 64, "bits": 2},
        other: {"group_size": 64, "bits": 5},
        "lm_head.base": {"group_size": 64, "bits": 4},
    }
    assert config["quantization_config"] == config["quantization"]
    assert config["plastic"] == {
        "version": 3,
        "stock": {"architectures": ["LlamaForCausalLM"]},
        "ranks": {down: 9},
        "corrected": {
            q: {"rank": 5, "bits": 8, "group_size": [64, 64], "backbone": True},
            k: {"rank": 7, "bits": 4, "group_size": [32, 64], "backbone": False},
            gate: {"rank": 3, "bits": 16, "group_size": [0, 0], "backbone": True},
            "lm_head": {"rank": 2, "bits": 16, "group_size": [0, 0], "backbone": True},
        },
    }
    assert config["model_file"] == "plastic_model.py"
    assert (out / "plastic_model.py").read_text() == Path(plastic_model.__file__).read_text()
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.shape(f"{k}.u.weight") == (7, 32)
        assert checkpoint.shape(f"{q}.base.weight") == (64, 64)


def test_the_package_runs_it_as_stock_mlx_lm_does_and_quickly_the_same(
    with_biases: Make, make_plan: MakePlan, tmp_path: Path
) -> None:
    source, file, out = with_biases("F32"), tmp_path / "plan.json", tmp_path / "out"
    make_plan(source, file, every_form(7))
    execute_plan(source, out, file)
    reference = logits(stock_load(out, trust_remote_code=True)[0])
    np.testing.assert_array_equal(logits(load_model(out)), reference)
    model: Any = load_for_inference(out)
    atol = 10 * 96 * 16 * EPS * np.abs(reference).max()  # sixteen products of at most 96 terms
    np.testing.assert_allclose(logits(model), reference, rtol=0, atol=atol)
    if on_cpu():
        layers = dict(model.named_modules())
        assert all(isinstance(layers[module_path(name)], nn.Linear) for name in NAMES[:3])
        assert all(w.dtype == mx.float32 for w in parameters(model).values())


def test_a_healthy_folder_verifies_has_nothing_to_restore_and_is_the_same_every_time(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    make_plan(checkpoint_folder, file, MIXED)
    for name in "ab":
        execute_plan(checkpoint_folder, tmp_path / name, file)
    a, b = tmp_path / "a", tmp_path / "b"
    assert all(p.read_bytes() == (b / p.name).read_bytes() for p in a.iterdir())
    assert verify(a) == []
    with pytest.raises(FormatError, match=r"what rounding took is not kept.*'tiny'"):
        restore(a, tmp_path / "dest")
    (a / "plastic_model.py").write_text("")
    (defect,) = verify(a)
    assert "plastic_model.py" in defect
    load_model(b)
    for folder, spoil in ((a, "not the model file"), (b, "missing")):
        if folder is b:
            (b / "plastic_model.py").unlink()
        with pytest.raises(FormatError, match=rf"plastic_model\.py: {spoil}.*plastic verify"):
            load_model(folder)


def test_without_a_correction_no_model_file_is_needed(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(checkpoint_folder, file, {NAMES[0]: Choice(4)})
    result = execute_plan(checkpoint_folder, out, file)
    assert not result.needs_model_file
    assert not (out / "plastic_model.py").exists()
    assert type(dict(stock_load(out)[0].named_modules())[module_path(NAMES[0])]) is (
        nn.QuantizedLinear
    )


def test_a_packed_source_is_corrected_and_what_is_kept_stays_packed(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    source, file, out = tmp_path / "q8", tmp_path / "plan.json", tmp_path / "out"
    model, config = quantize_model(*stock_load(checkpoint_folder), 32, 8)
    own = {module_path(NAMES[0]): {"group_size": 32, "bits": 8}}
    save_model(source, model)
    save_config(config | {"quantization": config["quantization"] | own}, source / "config.json")
    make_plan(source, file, MIXED)
    result = execute_plan(source, out, file)
    assert module_path(NAMES[0]) not in config_of(out)["quantization"]
    before, after = (load_safetensors(f / "model.safetensors") for f in (source, out))
    kept = [n for n in before if not n.startswith(tuple(module_path(m) for m in MIXED))]
    assert kept
    assert all(same_bits(before[name], after[name]) for name in kept)
    assert result.model_bytes < result.source_bytes
    loaded = stock_load(out, trust_remote_code=True)[0]
    assert np.isfinite(logits(loaded)).all()


def test_a_source_with_factored_layers_keeps_them(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array], make_plan: MakePlan, tmp_path: Path
) -> None:
    name, path = NAMES[2], module_path(NAMES[2])
    weights = {n: w for n, w in tiny_weights.items() if n != name}
    weights[f"{path}.v.weight"] = tiny_weights[name][:4]
    weights[f"{path}.u.weight"] = tiny_weights[name][:, :4]
    own = {
        "model_file": "plastic_model.py",
        "plastic": {"version": 2, "ranks": {path: 4}, "corrected": {}},
    }
    source = make_checkpoint("factored", weights=weights, **own)
    for number, choices in enumerate([{NAMES[0]: Choice(4)}, MIXED]):
        file, out = tmp_path / f"{number}.json", tmp_path / f"out-{number}"
        make_plan(source, file, choices)
        execute_plan(source, out, file)
        assert config_of(out)["plastic"]["ranks"][path] == 4
        layer = dict(stock_load(out, trust_remote_code=True)[0].named_modules())[path]
        assert same_bits(layer.v.weight, weights[f"{path}.v.weight"])


def test_a_corrected_model_survives_quantisation_and_saving(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    file, out, again = (tmp_path / name for name in ("plan.json", "out", "again"))
    make_plan(checkpoint_folder, file, {NAMES[0]: Choice(4, 5, UNPACKED)})
    execute_plan(checkpoint_folder, out, file)
    model, config = quantize_model(*stock_load(out, trust_remote_code=True), 32, 8)
    save_model(again, model)
    save_config(config, again / "config.json")
    shutil.copy(plastic_model.__file__, again)
    loaded, _ = stock_load(again, trust_remote_code=True)
    layer = dict(loaded.named_modules())[module_path(NAMES[0])]
    assert (layer.u.bits, layer.u.group_size, layer.u.weight.shape) == (8, 32, (5, 16))
    np.testing.assert_array_equal(logits(loaded), logits(model))


def test_a_rank_for_what_is_no_linear_layer_is_an_error(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(checkpoint_folder, file, MIXED)
    execute_plan(checkpoint_folder, out, file)
    config = config_of(out)
    entry = config["plastic"]["corrected"].pop(module_path(NAMES[0]))
    config["plastic"]["corrected"]["model.norm"] = entry
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"model\.norm.*no linear layer"):
        load_model(out)


SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
TAKEN_FOR_TIED: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 16, "sliding_window_pattern": 2},
    "minicpm": {
        "dim_model_base": 64,
        "scale_depth": 1.4,
        "scale_emb": 1,
        "max_position_embeddings": 64,
    },
}
"""Types whose ``sanitize`` takes a head that is stored otherwise for one that is missing."""


@pytest.mark.parametrize("choice", [Choice(4, 2, UNPACKED), Choice(None, 9, UNPACKED)])
@pytest.mark.parametrize("model_type", TAKEN_FOR_TIED)
def test_a_head_that_is_stored_otherwise_is_not_taken_for_a_tied_one(
    make_checkpoint: Make, make_plan: MakePlan, tmp_path: Path, model_type: str, choice: Choice
) -> None:
    config = {"model_type": model_type, **SMALL, **TAKEN_FOR_TIED[model_type]}
    model_class, args = _get_classes(config)
    shapes = {n: a.shape for n, a in parameters(model_class(args.from_dict(config))).items()}
    keys = {name: mx.random.key(number) for number, name in enumerate(shapes)}
    weights = {n: 0.1 * mx.random.normal(shape, key=keys[n]) for n, shape in shapes.items()}
    source = make_checkpoint("untied", weights=weights, **config)
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(source, file, {HEAD: choice, NAMES[0]: Choice(4)})
    execute_plan(source, out, file)
    stock = stock_load(out, trust_remote_code=True)[0]
    head = dict(stock.named_modules())["lm_head"]
    with open_checkpoint(source) as checkpoint:
        W = mx.array(checkpoint.matrix(HEAD))
    near = mx.linalg.norm(head(mx.eye(64)).T - W) < mx.linalg.norm(W)
    assert near.item()
    np.testing.assert_allclose(logits(load_model(out)), logits(stock), rtol=1e-2, atol=1e-2)
