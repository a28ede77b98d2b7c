"""Loading what this package writes, with stock mlx-lm as the oracle; and running no code."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plastic_core.testing import parameters

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import sentencepiece
from mlx_lm.utils import _get_classes
from mlx_lm.utils import load_model as stock_load
from plastic_core.files import FormatError
from plastic_core.linalg import on_cpu
from plastic_export.model import plastic_model
from plastic_export.model.load import load_for_inference, load_model
from plastic_export.model.stock import linear_paths, stock_model
from plastic_export.model.text import read_text, text_windows
from plastic_export.model.tokenizer import load_tokenizer

MakeModel = Callable[..., Path]

SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 400,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

TOKENS = mx.array([[1, 5, 9, 200, 17, 3]])
ARCHITECTURES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llama": ({}, ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]),
    "qwen2": ({}, ["model.layers.0.self_attn.k_proj", "model.layers.0.mlp.gate_proj"]),
    "qwen3": ({}, ["model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj"]),
    "mistral": ({}, ["model.layers.1.self_attn.o_proj"]),
    "phi3": (
        {"head_dim": None},
        ["model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.gate_up_proj"],
    ),
    "gemma2": (
        {"sliding_window": 8, "query_pre_attn_scalar": 8},
        ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"],
    ),
    "gpt2": (
        {
            "n_ctx": 64,
            "n_embd": 16,
            "n_head": 2,
            "n_layer": 2,
            "n_positions": 64,
            "layer_norm_epsilon": 1e-5,
        },
        ["model.h.0.attn.c_attn", "model.h.1.mlp.c_proj"],
    ),
}
MODEL_FILE = Path(plastic_model.__file__)


@pytest.fixture(scope="session")
def text() -> str:
    """A few thousand characters of English and Python."""
    return Path(json.__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def pieces(text: str) -> bytes:
    """A sentencepiece model of 400 tokens."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=writer,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
    )
    return writer.getvalue()


@pytest.fixture
def make_model(tmp_path: Path, pieces: bytes) -> MakeModel:
    """``make_model(name, ranks=None, seed=0, **config)``: a random float32 checkpoint."""

    def make(
        name: str, *, ranks: dict[str, int] | None = None, seed: int = 0, **config: Any
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(pieces)
        tokenizer = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        content = SMALL | config
        if ranks is not None:
            content |= {
                "model_file": "plastic_model.py",
                "plastic": {"version": 2, "ranks": ranks, "corrected": {}},
            }
        (folder / "config.json").write_text(json.dumps(content))
        mx.save_safetensors(str(folder / "model.safetensors"), _weights(content, seed))
        return folder

    return make


def _weights(config: dict[str, Any], seed: int) -> dict[str, mx.array]:
    """Normal weights in the shapes of the model, scaled so that activations stay near one."""
    model, args = _get_classes(config)
    if "plastic" in config:
        model, args = plastic_model.Model, plastic_model.ModelArgs
    shapes = {name: w.shape for name, w in parameters(model(args.from_dict(config))).items()}
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    return {
        name: mx.random.normal(shape, key=key) * shape[-1] ** -0.5
        if len(shape) > 1
        else 1 + 0.1 * mx.random.normal(shape, key=key)
        for (name, shape), key in zip(shapes.items(), list(keys), strict=True)
    }


def logits(model: nn.Module) -> np.ndarray[Any, Any]:
    return np.asarray(model(TOKENS).astype(mx.float32))


def stored(folder: Path) -> dict[str, mx.array]:
    weights: Any = mx.load(str(folder / "model.safetensors"))
    return dict(weights)


def tolerance(reference: np.ndarray[Any, Any], width: int = 24, depth: int = 16) -> float:
    """Rounding of ``depth`` products over at most ``width`` terms, in float32."""
    return 10 * width * depth * float(np.finfo(np.float32).eps) * float(np.abs(reference).max())


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def trap(path: Path) -> Path:
    """A Python file that leaves a trace when it is run."""
    trace = path.parent / "trace"
    path.write_text(f"open({str(trace)!r}, 'w').close()\n" + MODEL_FILE.read_text())
    return trace


def with_dense_products(folder: Path, ranks: dict[str, int]) -> Path:
    """The dense twin of a factored folder: every pair of factors multiplied out."""
    twin = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-dense")))
    weights = stored(folder)
    for path in ranks:
        u, v = weights.pop(f"{path}.u.weight"), weights.pop(f"{path}.v.weight")
        weights[f"{path}.weight"] = mx.array(np.asarray(u) @ np.asarray(v))
        if f"{path}.u.bias" in weights:
            weights[f"{path}.bias"] = weights.pop(f"{path}.u.bias")
    mx.save_safetensors(str(twin / "model.safetensors"), weights)
    config = json.loads((twin / "config.json").read_text())
    del config["model_file"], config["plastic"]
    (twin / "config.json").write_text(json.dumps(config))
    return twin


def test_a_dense_checkpoint_gives_the_bits_that_stock_mlx_lm_gives(make_model: MakeModel) -> None:
    folder = make_model("dense")
    np.testing.assert_array_equal(logits(load_model(folder)), logits(stock_load(folder)[0]))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_factored_checkpoint_equals_its_dense_twin(
    make_model: MakeModel, model_type: str
) -> None:
    config, paths = ARCHITECTURES[model_type]
    ranks = dict(zip(paths, (3, 5), strict=False))
    folder = make_model("factored", ranks=ranks, model_type=model_type, **config)
    dense = logits(load_model(with_dense_products(folder, ranks)))
    np.testing.assert_allclose(logits(load_model(folder)), dense, rtol=0, atol=tolerance(dense))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_stock_mlx_lm_runs_the_model_file_beside_the_weights(
    make_model: MakeModel, model_type: str
) -> None:
    config, paths = ARCHITECTURES[model_type]
    folder = make_model("factored", ranks=dict.fromkeys(paths, 4), model_type=model_type, **config)
    shutil.copy(MODEL_FILE, folder)
    model, _ = stock_load(folder, trust_remote_code=True)
    np.testing.assert_array_equal(logits(model), logits(load_model(folder)))
    assert model.model_type == model_type
    assert len(model.layers) == 2


def test_the_stock_class_sees_its_own_tensors_and_not_the_factors(make_model: MakeModel) -> None:
    config, paths = ARCHITECTURES["gpt2"]
    folder = make_model("ours", ranks=dict.fromkeys(paths, 4), model_type="gpt2", **config)
    theirs = Path(shutil.copytree(folder, folder.with_name("theirs")))
    weights = {}
    for name, weight in stored(folder).items():
        if name.startswith(tuple(paths)):
            weights[name] = weight
        else:  # as Hugging Face stores GPT-2: no prefix, Conv1D weights transposed
            convolution = ".c_" in name and name.endswith(".weight")
            weights[name.removeprefix("model.")] = weight.T if convolution else weight
    mx.save_safetensors(str(theirs / "model.safetensors"), weights)
    reference = logits(load_model(folder))
    atol = tolerance(reference)
    np.testing.assert_allclose(logits(load_model(theirs)), reference, rtol=0, atol=atol)


def test_the_model_file_imports_nothing_but_mlx_and_mlx_lm() -> None:
    lines = MODEL_FILE.read_text().splitlines()
    imports = {
        line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))
    }
    standard = {"dataclasses", "json", "os", "pathlib", "typing"}
    assert imports == {*standard, "mlx", "mlx_lm"}


def test_a_factored_model_survives_quantisation_and_saving(make_model: MakeModel) -> None:
    from mlx_lm.utils import quantize_model, save_config, save_model

    path = "model.layers.0.mlp.up_proj"
    folder = make_model("factored", ranks={path: 32}, hidden_size=64, intermediate_size=96)
    shutil.copy(MODEL_FILE, folder)
    model, config = stock_load(folder, trust_remote_code=True)
    model, config = quantize_model(model, config, 32, 8)
    out = folder.with_name("quantised")
    save_model(out, model)
    save_config(config, out / "config.json")
    loaded: Any = load_model(out)
    assert type(dict(loaded.named_modules())[f"{path}.u"]) is nn.QuantizedLinear
    np.testing.assert_array_equal(logits(loaded), logits(model))


def test_a_layer_of_rank_zero_maps_to_its_bias_alone() -> None:
    layer = plastic_model.FactorLinear(3, 2, 0, bias=True)
    layer.u.bias = mx.array([1.0, -2.0])
    assert layer(mx.ones((4, 3))).tolist() == [[1.0, -2.0]] * 4


def test_a_missing_factor_is_an_error(make_model: MakeModel) -> None:
    path = "model.layers.0.mlp.up_proj"
    folder = make_model("factored", ranks={path: 3})
    weights = stored(folder)
    del weights[f"{path}.v.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(FormatError, match=r"up_proj\.v\.weight"):
        load_model(folder)


def test_a_rank_for_a_layer_that_is_not_there_is_an_error(make_model: MakeModel) -> None:
    folder = make_model("factored", ranks={"model.layers.0.mlp.up_proj": 3})
    ranks = {"model.layers.9.mlp.up_proj": 3}
    edit(folder, plastic={"version": 2, "ranks": ranks, "corrected": {}})
    with pytest.raises(FormatError, match=r"layers\.9\.mlp\.up_proj.*no linear layer"):
        load_model(folder)


def test_an_unknown_version_of_the_factored_format_is_refused(make_model: MakeModel) -> None:
    folder = make_model("factored", ranks={"model.layers.0.mlp.up_proj": 3})
    edit(folder, plastic={"version": 4, "ranks": {}})
    with pytest.raises(FormatError, match="version 4"):
        load_model(folder)


def test_our_model_file_runs_from_the_package_and_not_from_the_folder(
    make_model: MakeModel,
) -> None:
    folder = make_model("factored", ranks={"model.layers.0.mlp.up_proj": 3})
    trace = trap(folder / "plastic_model.py")
    logits(load_model(folder))
    load_tokenizer(folder)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["evil.py", "plastic_model.py", "../plastic_model.py"])
def test_a_foreign_model_file_is_refused_by_name(make_model: MakeModel, name: str) -> None:
    folder = make_model("foreign")
    trace = trap(folder / Path(name).name)
    edit(folder, model_file=name)
    with pytest.raises(FormatError, match=rf"config\.json: 'model_file' names '{name}'"):
        load_model(folder)
    assert not trace.exists()


def test_auto_map_is_never_followed(make_model: MakeModel) -> None:
    folder = make_model("foreign", auto_map={"AutoModelForCausalLM": "evil.Model"})
    trace = trap(folder / "evil.py")
    logits(load_model(folder))
    edit(folder, model_type="evil")
    with pytest.raises(FormatError, match="no model of type 'evil', and 'auto_map' names code"):
        load_model(folder)
    assert not trace.exists()


def test_a_tokenizer_that_is_code_of_the_folder_is_not_run(make_model: MakeModel) -> None:
    folder = make_model("foreign")
    trace = trap(folder / "evil.py")
    edit(
        folder,
        "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", None]},
    )
    edit(folder, model_type="evil")
    with pytest.raises(FormatError, match="tokenizer cannot be loaded"):
        load_tokenizer(folder)
    assert not trace.exists()


@pytest.mark.parametrize("model_type", [None, 7, "nothing", "cache", ["llama"]])
def test_an_unknown_model_type_is_named(make_model: MakeModel, model_type: Any) -> None:
    folder = make_model("dense")
    edit(folder, model_type=model_type)
    with pytest.raises(FormatError, match=r"config\.json: mlx-lm has no model of type"):
        load_model(folder)


@pytest.mark.parametrize(
    "change", [{"hidden_size": 32}, {"num_hidden_layers": 3}, {"hidden_size": None}]
)
def test_weights_that_do_not_fit_the_configuration_are_one_line(
    make_model: MakeModel, change: dict[str, Any]
) -> None:
    folder = make_model("dense")
    edit(folder, **change)
    with pytest.raises(FormatError, match="'llama' model cannot be built from it") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 0}, {"vocab_size": 0}, {"rope_scaling": [1]}]
)
def test_a_configuration_of_which_no_model_can_be_built_is_one_line(
    make_model: MakeModel, change: dict[str, Any]
) -> None:
    folder = make_model("dense")
    edit(folder, **change, head_dim=None)  # which is computed from the number of heads then
    config = json.loads((folder / "config.json").read_text())
    for build in (lambda: load_model(folder), lambda: stock_model(config)):
        with pytest.raises(FormatError, match="'llama' model cannot be built") as caught:
            build()
        assert "\n" not in str(caught.value)


def test_a_damaged_weight_file_is_refused_before_mlx_reads_it(make_model: MakeModel) -> None:
    folder = make_model("dense")
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04 not a tensor")
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        load_model(folder)


def test_a_folder_without_weights_is_named(make_model: MakeModel) -> None:
    folder = make_model("dense")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"no weights: mlx-lm reads model\*\.safetensors"):
        load_model(folder)


def test_without_mlx_lm_the_error_names_the_extra(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model("dense")
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    monkeypatch.setitem(sys.modules, "mlx_lm.utils", None)
    for call in (load_model, load_tokenizer):
        with pytest.raises(ModuleNotFoundError, match=r"plastic-export\[lm\]"):
            call(folder)


def test_parameters_keep_their_stored_types(make_model: MakeModel) -> None:
    folder = make_model("dense")
    weights = stored(folder)
    halves = {name: weight.astype(mx.bfloat16) for name, weight in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), halves)
    types = {weight.dtype for weight in parameters(load_model(folder)).values()}
    assert types == {mx.bfloat16}


@pytest.mark.skipif(not on_cpu(), reason="the CPU's short cut")
def test_inference_on_the_cpu_is_in_float32_and_changes_nothing(make_model: MakeModel) -> None:
    folder = make_model("factored", ranks={"model.layers.0.mlp.up_proj": 3})
    reference = logits(load_model(folder))
    model = load_for_inference(folder)
    assert {weight.dtype for weight in parameters(model).values()} == {mx.float32}
    np.testing.assert_allclose(logits(model), reference, rtol=0, atol=tolerance(reference))


def test_linear_paths_are_the_layers_that_can_be_factored(make_model: MakeModel) -> None:
    config = json.loads((make_model("dense") / "config.json").read_text())
    paths = linear_paths(config)
    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    mlp = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    blocks = {f"model.layers.{i}.{path}" for i in range(2) for path in attention | mlp}
    assert paths == blocks | {"lm_head"}


def test_linear_paths_leave_out_stacked_experts() -> None:
    config = {
        "model_type": "mixtral",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    }
    paths = linear_paths(config)
    assert "model.layers.0.self_attn.q_proj" in paths
    assert not any("switch_mlp" in path for path in paths)


def test_windows_are_consecutive_and_begin_as_every_text_does(
    make_model: MakeModel, text: str
) -> None:
    tokenizer = load_tokenizer(make_model("dense"))
    windows = np.asarray(text_windows(tokenizer, text, length=16))
    assert (windows[:, 0] == tokenizer.bos_token_id).all()
    ids = tokenizer.encode(text, verbose=False)[1:]
    assert windows[:, 1:].ravel().tolist() == ids[: len(ids) // 15 * 15]


def test_a_limit_spreads_the_windows_over_the_text(make_model: MakeModel, text: str) -> None:
    tokenizer = load_tokenizer(make_model("dense"))
    every = np.asarray(text_windows(tokenizer, text, length=16))
    few = np.asarray(text_windows(tokenizer, text, length=16, limit=4))
    np.testing.assert_array_equal(few, every[np.arange(4) * len(every) // 4])
    many = text_windows(tokenizer, text, length=16, limit=10**6)
    np.testing.assert_array_equal(np.asarray(many), every)


def test_a_text_shorter_than_one_window_says_how_short(make_model: MakeModel) -> None:
    tokenizer = load_tokenizer(make_model("dense"))
    with pytest.raises(ValueError, match="fewer than one window of 256"):
        text_windows(tokenizer, "a short text")
    with pytest.raises(ValueError, match="the text has 1 tokens"):
        text_windows(tokenizer, "", length=2)


@pytest.mark.parametrize("wrong", [{"length": 1}, {"limit": 0}])
def test_window_arguments_out_of_range_are_named(
    make_model: MakeModel, wrong: dict[str, int]
) -> None:
    tokenizer = load_tokenizer(make_model("dense"))
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be at least"):
        text_windows(tokenizer, "text", **wrong)


def test_text_that_is_not_utf_8_is_refused_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(FormatError, match=r"latin\.txt: not UTF-8 text at byte 2"):
        read_text(path)


def test_weights_exchanged_while_mlx_lm_opens_them_are_noticed(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any, **options: Any) -> Any:
        path = checkpoint_folder / "model.safetensors"
        (checkpoint_folder / "other").write_bytes(path.read_bytes())
        (checkpoint_folder / "other").replace(path)
        return stock_load(*arguments, **options)

    monkeypatch.setattr("mlx_lm.utils.load_model", slow)
    with pytest.raises(FormatError, match="it changed while it was being read"):
        load_model(checkpoint_folder)
