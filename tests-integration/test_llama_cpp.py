"""``plastic export --to gguf``, run in llama.cpp: the tokens and predictions of mlx-lm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import sentencepiece
from numpy.typing import NDArray
from plastic_export import (
    BitsPlan,
    Compressed,
    TrainedRun,
    TrainingOptions,
    compress,
    export,
    load_model,
    load_tokenizer,
    train,
)
from plastic_export.gguf import ARCHITECTURES, PRE_TOKENIZERS, Cuts
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from zoo.building import CONFIGS, build_checkpoint

pytest.importorskip(
    "xllamacpp", reason="xllamacpp, a wheel of llama.cpp for Linux on x86-64, is not installed"
)
SERVER = Path(__file__).with_name("ask_llama_cpp.py")
TOKENS = 64
FLOAT32 = 1e-5  # nats, of the mean KL divergence
PROMPT = "def read(path: str) -> bytes:\n    "
Outputs = dict[str, Compressed[BitsPlan]]


class Greedy(NamedTuple):
    """What llama.cpp continued a prompt with.

    Attributes:
        tokens: The tokens.
        log_p: Log-probabilities of the whole vocabulary at each, shape (tokens, vocabulary).
    """

    tokens: list[int]
    log_p: NDArray[np.float64]


def asked(file: Path, request: dict[str, Any], lora: Path | None = None) -> Any:
    """What llama.cpp's server answers to a request."""
    words = [sys.executable, str(SERVER), str(file), *([] if lora is None else [str(lora)])]
    done = subprocess.run(
        words, input=json.dumps(request), capture_output=True, text=True, timeout=600, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def in_llama_cpp(
    file: Path,
    prompt: list[int],
    size: int,
    *,
    lora: Path | None = None,
    banned: Sequence[int] = (),
) -> Greedy:
    """Continue a prompt greedily, without banned tokens; ``log_p`` has them all the same."""
    request = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0.0, "n_probs": size}
    request |= {"ignore_eos": True, "logit_bias": [[token, False] for token in banned]}
    said = asked(file, request, lora)["choices"][0]["logprobs"]["content"]
    log_p = np.full((len(said), size), -np.inf)
    for row, token in zip(log_p, said, strict=True):
        for candidate in token["top_logprobs"]:
            row[candidate["id"]] = candidate["logprob"]
    return Greedy([token["id"] for token in said], log_p)


def differs(
    model: Any,
    prompt: list[int],
    file: Path,
    *,
    lora: Path | None = None,
    banned: Sequence[int] = (),
) -> tuple[int, float]:
    """How many greedy tokens are not mlx-lm's, and the mean KL divergence from mlx-lm in nats."""
    model.set_dtype(mx.float32)
    size = model(mx.array([prompt[:1]])).shape[-1]
    greedy = in_llama_cpp(file, prompt, size, lora=lora, banned=banned)
    logits = model(mx.array([prompt + greedy.tokens[:-1]]))[0, len(prompt) - 1 :]
    log_p = normalised(np.array(logits, np.float64))
    log_q = normalised(greedy.log_p)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    log_p[:, list(banned)] = -np.inf
    assert len(greedy.tokens) == TOKENS
    return int((log_p.argmax(axis=-1) != greedy.tokens).sum()), float(kl.mean())


def normalised(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities, in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


@pytest.fixture(scope="module")
def prompt(checkpoint: Path) -> list[int]:
    return list(load_tokenizer(checkpoint).encode(PROMPT))


@pytest.mark.parametrize(
    ("type", "most"), [("f32", FLOAT32), ("f16", FLOAT32), ("bf16", 1e-4), ("q8_0", 1e-3)]
)
def test_a_source_predicts_the_same(
    tmp_path: Path, checkpoint: Path, prompt: list[int], type: str, most: float
) -> None:
    export(checkpoint, tmp_path / "SRC.gguf", to="gguf", type=type)
    wrong, kl = differs(load_model(checkpoint), prompt, tmp_path / "SRC.gguf")
    assert kl < most
    assert wrong <= (0 if type == "f32" else 2)  # it rounds what it multiplies with the others


@pytest.mark.parametrize("format", ["factored", "dense"])
def test_an_output_by_rank_predicts_the_same_in_float32(
    tmp_path: Path, checkpoint: Path, prompt: list[int], format: str
) -> None:
    out, file = tmp_path / "OUT", tmp_path / "OUT.gguf"
    compress(checkpoint, out, keep=0.7, format=format, check=False)
    export(out, file, to="gguf", type="f32")
    assert_float32(load_model(out), prompt, file)


@pytest.mark.parametrize("format", ["mixed", "corrected", "adapter"])
def test_an_output_of_a_plan_predicts_the_same_in_float32(
    tmp_path: Path, prompt: list[int], in_every_format: Outputs, format: str
) -> None:
    out, file = in_every_format[format].out, tmp_path / "OUT.gguf"
    export(out, file, to="gguf", type="f32")
    assert_float32(load_model(out), prompt, file)


def assert_float32(model: Any, prompt: list[int], file: Path, **settings: Any) -> None:
    wrong, kl = differs(model, prompt, file, **settings)
    assert (wrong, kl < FLOAT32) == (0, True), kl


def test_codes_of_a_plan_stay_codes(
    tmp_path: Path, prompt: list[int], in_every_format: Outputs
) -> None:
    out, file = in_every_format["mixed"].out, tmp_path / "OUT.gguf"
    done = export(out, file, to="gguf")
    assert done.types["Q4_1"] == 14
    assert done.errors == {}  # scales fit float16
    wrong, kl = differs(load_model(out), prompt, file)
    assert kl < 1e-3  # llama.cpp rounds what it multiplies with codes to 8 bits
    assert wrong <= 2


def test_a_base_and_its_adapter_predict_what_both_do(
    tmp_path: Path, prompt: list[int], in_every_format: Outputs
) -> None:
    out, base, lora = in_every_format["adapter"].out, tmp_path / "BASE.gguf", tmp_path / "L.gguf"
    export(out, base, to="gguf", type="f32", piece="base")
    export(out, lora, to="gguf", type="f32", piece="adapter")
    assert_float32(load_model(out), prompt, base, lora=lora)


@pytest.fixture(scope="module")
def trained(
    checkpoint: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainedRun:
    """A run of a few steps whose adapter says something."""
    folder = tmp_path_factory.mktemp("trained")
    lines = [line for line in calibration.read_text().splitlines() if len(line) > 40]
    (folder / "data").mkdir()
    for name, part in (("train", lines[:16]), ("valid", lines[16:20])):
        rows = "".join(json.dumps({"text": line}) + "\n" for line in part)
        (folder / "data" / f"{name}.jsonl").write_text(rows)
    training = TrainingOptions(
        steps=8, batch=2, window=32, rank=3, learning_rate=5e-3, state="last"
    )
    return train(checkpoint, folder / "data", folder / "run", training)


def test_a_run_becomes_an_adapter_over_its_base(
    tmp_path: Path, checkpoint: Path, prompt: list[int], trained: TrainedRun
) -> None:
    base, lora = tmp_path / "BASE.gguf", tmp_path / "LORA.gguf"
    export(checkpoint, base, to="gguf", type="f32")
    export(trained.out, lora, to="gguf", type="f32", base=checkpoint)
    export(trained.out, tmp_path / "FUSED", to="mlx", type="f32", base=checkpoint)
    fused = load_model(tmp_path / "FUSED")
    assert_float32(fused, prompt, base, lora=lora)
    untouched = differs(fused, prompt, base)[1]
    assert untouched > 100 * FLOAT32  # the adapter changes something


SPECIAL: dict[str, dict[str, Any]] = {
    "llama3": {
        "model_type": "llama",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "gemma3_text": {"sliding_window_pattern": 6, "num_hidden_layers": 7},
    "smollm3": {"no_rope_layers": None, "num_hidden_layers": 5},
}
"""Settings of the zoo's tiny models that llama.cpp has a place for, or that test more of it."""


@pytest.mark.parametrize("kind", sorted({*ARCHITECTURES, *SPECIAL}))
def test_every_architecture_predicts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = {"model_type": kind, **SPECIAL.get(kind, {})}
    model_type = settings["model_type"]
    monkeypatch.setitem(CONFIGS, model_type, {**CONFIGS[model_type], **settings})
    folder = build_checkpoint(tmp_path / "SRC", model_type, "mlx")
    tokenizer = byte_level(next(iter(PRE_TOKENIZERS)))
    tokenizer.save(str(folder / "tokenizer.json"))
    export(folder, tmp_path / "SRC.gguf", to="gguf", type="f32")
    prompt = tokenizer.encode(PROMPT).ids
    # The server says nothing of tokens that are a part of a character.
    parts = [i for i in range(512) if not tokenizer.decode([i]).isascii() or i < 4]
    assert_float32(load_model(folder), prompt, tmp_path / "SRC.gguf", banned=parts)


CALIBRATION = Path(__file__).parent / "data" / "stdlib-llama" / "calibration.txt"
AWKWARD = "It's 2024's end: I'LL pay 12345.67 €!\n\n  x  = y\t+ 1;\r\n\r\n über Straße 日本語 😀 ok"
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|end|>"]


def byte_level(cuts: Cuts) -> Tokenizer:
    """A byte-level BPE that cuts by these rules, trained on the shipped text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=cuts.ignores_merges))
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in cuts.patterns]
    steps += [pre_tokenizers.Digits(individual_digits=True)] if cuts.digits else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cuts.gpt2)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", "<|end|>"],
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator([CALIBRATION.read_text()[:200_000]], trainer)
    return tokenizer


def tokens_in_llama_cpp(file: Path, text: str) -> list[int]:
    """The tokens that llama.cpp cuts a text into."""
    request = {"content": text, "add_special": False, "parse_special": True}
    tokens: list[int] = asked(file, request)["tokens"]
    return tokens


@pytest.mark.parametrize("cuts", PRE_TOKENIZERS, ids=PRE_TOKENIZERS.values())
def test_llama_cpp_cuts_a_text_alike(tmp_path: Path, cuts: Cuts) -> None:
    folder = build_checkpoint(tmp_path / "SRC", "llama", "mlx")
    tokenizer = byte_level(cuts)
    tokenizer.save(str(folder / "tokenizer.json"))
    export(folder, tmp_path / "SRC.gguf", to="gguf", type="f16")
    text = CALIBRATION.read_text()[:4000] + AWKWARD + "<|end|>ok"
    assert tokens_in_llama_cpp(tmp_path / "SRC.gguf", text) == tokenizer.encode(text).ids


def test_llama_cpp_cuts_a_text_as_sentencepiece_does(tmp_path: Path, checkpoint: Path) -> None:
    export(checkpoint, tmp_path / "SRC.gguf", to="gguf", type="f16")
    text = CALIBRATION.read_text()[:4000] + AWKWARD
    wanted = sentencepiece.SentencePieceProcessor(str(checkpoint / "tokenizer.model")).encode(text)
    assert tokens_in_llama_cpp(tmp_path / "SRC.gguf", text) == wanted
