"""Small real checkpoints on disk, made by stock MLX and not by the code under test."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from plastic_core import Backbone, Correction
from plastic_core.files import sha256_file
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import module_path
from plastic_export.compression.plan_file import LossPlan, source_identity, write_plan
from plastic_export.evaluation.output_check import OutputChecker
from plastic_export.plan.choices import candidate
from plastic_export.plan.gram_uses import gram_roots
from plastic_export.plan.offers import (
    BitsPlan,
    Candidate,
    Choice,
    Offer,
    Offered,
    factor_bytes,
    packed_bytes,
)
from plastic_export.plan.storing import stored
from plastic_export.source.source import Source
from plastic_runtime import GramFile
from plastic_runtime.measure import GRAM_FILE_VERSION, GramSum, append_grams
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 80,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama checkpoint, as Hugging Face names them."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    key_value = config["num_key_value_heads"] * config["head_dim"]
    block = {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (key_value, hidden),
        "self_attn.v_proj.weight": (key_value, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, mx.array]:
    """Gaussian bfloat16 of standard deviation 0.1, ones for the norms."""
    weights = {}
    for number, (name, shape) in enumerate(shapes.items()):
        noise = 0.1 * mx.random.normal(shape, key=mx.random.key(number))
        weights[name] = (mx.ones(shape) if len(shape) == 1 else noise).astype(mx.bfloat16)
    return weights


def write_folder(
    folder: Path, weights: dict[str, mx.array], config: dict[str, Any], *, shards: int = 1
) -> Path:
    """Write a checkpoint folder as stock tools lay it out, in one file or several."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "tokenizer.model").write_bytes(b"\x00\x01 not a real tokenizer \xff")
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
        return folder
    index: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(weights.items())[number::shards])
        mx.save_safetensors(str(folder / name), part, {"format": "mlx"})
        index |= dict.fromkeys(part, name)
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


@dataclass(frozen=True)
class HubCache:
    """A folder laid out as the cache of huggingface_hub, holding one repository."""

    folder: Path
    repository: str
    commit: str

    @property
    def home(self) -> Path:
        return self.folder / f"models--{self.repository.replace('/', '--')}"

    @property
    def snapshot(self) -> Path:
        return self.home / "snapshots" / self.commit


RUN = ("test_examples", "test_output_check", "test_writer_check")
"""Modules of tests whose outputs are run before they are published."""


@pytest.fixture(autouse=True)
def _not_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish outputs without running them: many stand for no model, or for random Grams."""
    if request.path.stem not in RUN:
        monkeypatch.setattr(OutputChecker, "run_source", lambda checker: None)
        monkeypatch.setattr(OutputChecker, "check", lambda checker, folder, name: None)


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, mx.array]:
    """The weights of a Llama with two blocks, random, in bfloat16."""
    return random_weights(llama_shapes(LLAMA))


@pytest.fixture
def make_checkpoint(tmp_path: Path, tiny_weights: dict[str, mx.array]) -> Callable[..., Path]:
    """A function that writes a checkpoint folder: ``make(name, shards=, weights=, **config)``."""

    def make(
        name: str = "tiny",
        *,
        shards: int = 1,
        weights: dict[str, mx.array] | None = None,
        **config: Any,
    ) -> Path:
        chosen = tiny_weights if weights is None else weights
        return write_folder(tmp_path / name, chosen, LLAMA | config, shards=shards)

    return make


@pytest.fixture(scope="session")
def write_weights() -> Callable[[Path, dict[str, mx.array]], Path]:
    """A function that writes a folder with these weights of the tiny Llama."""
    return lambda folder, weights: write_folder(folder, weights, LLAMA)


@pytest.fixture
def checkpoint_folder(make_checkpoint: Callable[..., Path]) -> Path:
    """A tiny random Llama in one bfloat16 file."""
    return make_checkpoint()


@pytest.fixture
def sharded_folder(make_checkpoint: Callable[..., Path]) -> Path:
    """The same weights in three files with an index."""
    return make_checkpoint("sharded", shards=3)


@pytest.fixture
def hub_cache(tmp_path: Path, sharded_folder: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    """The sharded checkpoint in a Hub cache, with the Hub itself out of reach."""
    cache = HubCache(tmp_path / "hub", "someone/tiny-llama", "0123456789abcdef" * 2 + "01234567")
    blobs = cache.home / "blobs"
    blobs.mkdir(parents=True)
    cache.snapshot.mkdir(parents=True)
    for file in sharded_folder.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (blobs / digest).write_bytes(file.read_bytes())
        (cache.snapshot / file.name).symlink_to(os.path.join("..", "..", "blobs", digest))
    (cache.home / "refs").mkdir()
    (cache.home / "refs" / "main").write_text(cache.commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture(scope="session")
def candidates_of() -> Callable[[Checkpoint], list[Candidate]]:
    """A function that gives the linear layers of a checkpoint, in its order."""
    return linear_candidates


def linear_candidates(checkpoint: Checkpoint) -> list[Candidate]:
    layers = Source.of(checkpoint).layers.values()
    found = [candidate(layer) for layer in layers if layer.kind == "linear"]
    return [m for m in found if m is not None]


@pytest.fixture(scope="session")
def write_grams() -> Callable[[Path, list[Candidate]], None]:
    """A function that writes the file that a calibration would leave."""
    return random_grams


def random_grams(file: Path, matrices: list[Candidate]) -> None:
    """Grams of Gaussian inputs of unequal power, and of small Gaussian gradients."""
    sums = []
    for i, m in enumerate(matrices):
        rng, (out, in_) = np.random.default_rng(i), m.shape
        X = rng.standard_normal((2 * in_, in_)) * rng.uniform(0.2, 2.0, in_)
        G = 1e-2 * rng.standard_normal((2 * out, out))
        path = module_path(m.name)
        sums += [
            GramSum(f"input.{path}", X.T @ X, len(X)),
            GramSum(f"output.{path}", G.T @ G, len(G)),
        ]
    paths = {module_path(m.name): 2 * m.shape[1] for m in matrices}
    header = {"made_for": {}, "sites": {p: p for p in paths}, "counts": paths, "tokens": 1}
    append_grams(file, [*sums, json.dumps({"version": GRAM_FILE_VERSION} | header).encode()], None)


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., LossPlan]:
    """``make_plan(source, file, choices, format)``: a plan of one budget, with its Grams.

    ``choices`` gives what a matrix takes, by its tensor name; matrices that it leaves out stay as
    they are.
    """
    return plan_of


def plan_of(
    source: Path, file: Path, choices: Mapping[str, Choice], format: str = "corrected"
) -> LossPlan:
    grams = file.with_suffix(".grams.npz")
    with open_checkpoint(source) as checkpoint:
        matrices = linear_candidates(checkpoint)
        random_grams(grams, matrices)
        offered = tuple(_offered(m, choices.get(m.name, Choice(None))) for m in matrices)
        chosen = {m.name: m.offer(*choices.get(m.name, Choice(None))) for m in offered}
        weights = sum(m.weights for m in matrices)
        budget = 8 * sum(o.nbytes for o in chosen.values()) / weights
        plan = LossPlan(
            source=source_identity(checkpoint),
            calibration={"window": 24},
            grams=(grams.name, sha256_file(grams)),
            matrices=offered,
            left=(),
            left_bytes=0,
            budgets=(BitsPlan(budget, f"{budget:g}", weights, 0.0, chosen),),
            format=format,
        )
    write_plan(file, plan)
    return plan


def _offered(m: Candidate, choice: Choice) -> Offered:
    """The matrix with one offer beside that of leaving it as it is."""
    bits, rank, factor_bits, size = choice
    size = 0 if bits is None else size or m.group_size
    nbytes = 0 if bits is None else packed_bytes(m.shape, bits, size, m.dtype)
    nbytes += factor_bytes(m.shape, rank, factor_bits, m.dtype) if rank else 0
    dense = Offer.unchanged(m)
    own = () if choice == dense.choice else (Offer(bits, nbytes, 1e-4, rank, factor_bits, size),)
    return Offered(m, (*own, dense))


@pytest.fixture(scope="session")
def priced() -> Callable[[Path, LossPlan, Path], dict[str, Priced]]:
    """``priced(source, plan, file)``: what was priced for each matrix, by module path."""
    return priced_parts


Priced = tuple[Backbone | None, Correction | None]


def priced_parts(source: Path, plan: LossPlan, file: Path) -> dict[str, Priced]:
    chosen = plan.budgets[0].chosen
    with open_checkpoint(source) as checkpoint, GramFile(file.with_suffix(".grams.npz")) as grams:
        return {
            module_path(m.name): stored(
                checkpoint.matrix(m.name),
                chosen[m.name],
                gram_roots(grams[module_path(m.name)]),
                m.matrix,
            )
            for m in plan.matrices
        }


@pytest.fixture
def readable(make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint with a tokenizer: one token per character."""
    return with_tokenizer(make_checkpoint())


def with_tokenizer(folder: Path) -> Path:
    (folder / "tokenizer.model").unlink(missing_ok=True)
    letters = [chr(code) for code in range(48, 126)]
    vocabulary = {"<unk>": 0, "<s>": 1} | {letter: i + 2 for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def make_readable(make_checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """The same for any checkpoint: its arguments are those of ``make_checkpoint``."""
    return lambda *args, **options: with_tokenizer(make_checkpoint(*args, **options))


@pytest.fixture
def make_llama(make_readable: Callable[..., Path]) -> Callable[..., Path]:
    """``make_llama(name, **config)``: a readable random Llama of the shapes of that config."""

    def make(name: str = "llama", **config: Any) -> Path:
        weights = random_weights(llama_shapes(LLAMA | config))
        return make_readable(name, weights=weights, **config)

    return make


@pytest.fixture
def make_chatty(make_llama: Callable[..., Path]) -> Callable[..., Path]:
    """A checkpoint of one token per letter, with control tokens and perhaps a chat template."""

    def make(template: str | None, *, begins: bool = False, end: str | None = "<e>") -> Path:
        folder = make_llama(f"chatty{template and len(template)}", vocab_size=96)
        file, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.add_special_tokens(["<s>", "<|im_start|>", "<|im_end|>", "<e>"])
        if begins:
            tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
        tokenizer.save(str(file))
        named = {"chat_template": template, "eos_token": end}
        given = {name: value for name, value in named.items() if value is not None}
        config.write_text(json.dumps(json.loads(config.read_text()) | given))
        return folder

    return make


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    letters = np.random.default_rng(0).integers(48, 126, 2000)
    file.write_text("".join(map(chr, letters)))
    return file


@pytest.fixture(scope="session")
def write_readable(tiny_weights: dict[str, mx.array]) -> Callable[[Path], Path]:
    """A function that writes the checkpoint with a tokenizer to a folder."""
    return lambda folder: with_tokenizer(write_folder(folder, tiny_weights, LLAMA))
