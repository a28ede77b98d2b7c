"""``plastic export --to gguf``, run in llama.cpp: the tokens and predictions of mlx-lm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
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

llama_cpp = pytest.importorskip(
    "xllamacpp", reason="xllamacpp, a wheel of llama.cpp for Linux on x86-64, is not installed"
)
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


def in_llama_cpp(
    file: Path, prompt: list[int] | str, size: int, *, lora: Path | None = None, count: int = TOKENS
) -> Greedy:
    """Continue a prompt greedily on the CPU, with keys and values in float32."""
    settings = llama_cpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 256, 1, 0
    settings.warmup, settings.verbosity, settings.cpuparams.n_threads = False, 0, 1
    settings.cache_type_k = settings.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if lora is not None:
        settings.lora_adapters = [llama_cpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    asked = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "n_probs": size}
    answer = llama_cpp.Server(settings).handle_completions(asked | {"ignore_eos": True})
    answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
    said = answer["choices"][0]["logprobs"]["content"]
    log_p = np.full((len(said), size), -np.inf)
    for row, token in zip(log_p, said, strict=True):
        for candidate in token["top_logprobs"]:
            row[candidate["id"]] = candidate["logprob"]
    return Greedy([token["id"] for token in said], log_p)


def differs(
    model: Any, prompt: list[int], file: Path, *, lora: Path | None = None
) -> tuple[int, float]:
    """How many greedy tokens are not mlx-lm's, and the mean KL divergence from mlx-lm in nats."""
    model.set_dtype(mx.float32)
    size = model(mx.array([prompt[:1]])).shape[-1]
    greedy = in_llama_cpp(file, prompt, size, lora=lora)
    logits = model(mx.array([prompt + greedy.tokens[:-1]]))[0, len(prompt) - 1 :]
    log_p = normalised(np.array(logits, np.float64))
    log_q = normalised(greedy.log_p)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
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


def assert_float32(model: Any, prompt: list[int], file: Path, lora: Path | None = None) -> None:
    wrong, kl = differs(model, prompt, file, lora=lora)
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
    assert_float32(load_model(out), prompt, base, lora)


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
    training = TrainingOptions(steps=8, batch=2, window=32, rank=3, learning_rate=5e-3)
    return train(checkpoint, folder / "data", folder / "run", training)


def test_a_run_becomes_an_adapter_over_its_base(
    tmp_path: Path, checkpoint: Path, prompt: list[int], trained: TrainedRun
) -> None:
    base, lora = tmp_path / "BASE.gguf", tmp_path / "LORA.gguf"
    export(checkpoint, base, to="gguf", type="f32")
    export(trained.out, lora, to="gguf", base=checkpoint)
    export(trained.out, tmp_path / "FUSED", to="mlx", type="f32", base=checkpoint)
    fused = load_model(tmp_path / "FUSED")
    assert_float32(fused, prompt, base, lora)
    untouched = differs(fused, prompt, base)[1]
    assert untouched > 100 * FLOAT32  # the adapter changes something
