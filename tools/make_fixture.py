"""Train the repository's own small checkpoint: a Llama that has read the Python standard library.

Writes a folder in Hugging Face layout (weights, sentencepiece tokenizer, configuration) with
excerpts that were not trained on. Everything comes from the running interpreter's own library,
nothing from a network. Deterministic for one interpreter, one version of MLX and one BLAS: the
seed is fixed and the text is taken in sorted order.

    uv run tools/make_fixture.py

About eight minutes on one CPU core with a fast BLAS. The reference BLAS inside MLX's Linux wheel
is many times slower; preloading another (LD_PRELOAD=.../libopenblas.so.0) replaces it.
"""

from __future__ import annotations

import argparse
import io
import json
import sysconfig
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import sentencepiece
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests-integration" / "data" / "stdlib-llama"
LIBRARY = Path(sysconfig.get_paths()["stdlib"])

# Not prose and not code that people write by hand, or not the standard library's own.
SKIPPED = {"encodings", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests"}
CALIBRATION = ("argparse", "calendar", "copy", "csv", "fractions", "heapq", "shelve", "tempfile")
HELDOUT = ("contextlib", "gettext", "sched", "shlex", "textwrap")
EXCERPT = {"calibration": 60_000, "heldout": 30_000}  # characters, an equal share from each module
PROSE = ("NEWS.txt", "News3.txt")  # idlelib's change notes, English, by version of Python

SEED = 0
VOCABULARY = 512
BOS = 1
PHASES = ((64, 32, 700), (256, 8, 200))  # (tokens per window, windows per step, steps)
PEAK_LEARNING_RATE = 4e-3

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": BOS,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": False,
    "model_max_length": 512,
    "clean_up_tokenization_spaces": False,
}
README = """# stdlib-llama

A Llama of {parameters:,} parameters in bfloat16, made by `tools/make_fixture.py` for this
repository's tests: small enough to keep, trained enough ({tokens:,} tokens) that what a
compression does to it can be measured. Its text is the source code and the docstrings of the
standard library of Python {python}. Loss on `heldout.txt`: {loss:.2f} nats per token, where
guessing uniformly costs {uniform:.2f}.

Three excerpts that were not trained on lie beside it:

- `calibration.txt`: {calibration}
- `heldout.txt`: {heldout}
- `heldout-prose.txt`: the change notes of idlelib

The text, and the weights as far as they derive from it, are covered by the Python Software
Foundation License, version 2: Copyright (c) 2001 onwards Python Software Foundation, all rights
reserved. Full text: https://docs.python.org/3/license.html
"""


def excerpt(modules: tuple[str, ...], characters: int) -> str:
    """The first lines of each module, an equal share of ``characters`` from each."""
    share = characters // len(modules)
    texts = (read(LIBRARY / f"{name}.py")[:share] for name in modules)
    return "\n".join(text[: text.rindex("\n") + 1] for text in texts)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def training_texts() -> list[str]:
    """The text of every module of the library that is neither skipped nor held out."""
    held = {*CALIBRATION, *HELDOUT}
    paths = [path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py")]
    kept = [
        path
        for path in sorted(paths)
        if not SKIPPED & {*path.parts}
        and not path.name.startswith("_sysconfigdata")  # the paths of this very machine
        and not (len(path.parts) == 1 and path.stem in held)
    ]
    return [read(LIBRARY / path) for path in kept]


def train_tokenizer(texts: list[str]) -> bytes:
    """A sentencepiece BPE model in Llama's form: byte fallback, newline as a piece of its own."""
    lines = [line for text in texts for line in text.splitlines() if line][::5]
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=writer,
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=0.999,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["\n"],
        num_threads=1,
        minloglevel=2,
    )
    return writer.getvalue()


def batches(tokens: NDArray[np.int32]) -> Iterator[mx.array]:
    """Windows of the training text at random places, shape (windows, tokens + 1)."""
    rng = np.random.default_rng(SEED)
    for length, windows, steps in PHASES:
        for _ in range(steps):
            starts = rng.integers(0, len(tokens) - length - 1, size=(windows, 1))
            yield mx.array(tokens[starts + np.arange(length + 1)])


def mean_loss(model: nn.Module, windows: mx.array) -> mx.array:
    """Cross entropy in nats per token; windows (n, length + 1) of token ids."""
    return nn.losses.cross_entropy(model(windows[:, :-1]), windows[:, 1:], reduction="mean")


def train_fixture(model: nn.Module, tokens: NDArray[np.int32]) -> None:
    """AdamW with a short warm-up and a cosine decay, printing the loss now and then."""
    steps = sum(phase[2] for phase in PHASES)
    warm_up = optim.linear_schedule(0.0, PEAK_LEARNING_RATE, steps=50)
    decay = optim.cosine_decay(PEAK_LEARNING_RATE, steps - 50, end=PEAK_LEARNING_RATE / 20)
    optimizer = optim.AdamW(
        learning_rate=optim.join_schedules([warm_up, decay], [50]),
        betas=[0.9, 0.95],
        weight_decay=0.1,
    )
    state = [model.state, optimizer.state]
    loss_and_gradient = nn.value_and_grad(model, mean_loss)

    @partial(mx.compile, inputs=state, outputs=state)
    def step(windows: mx.array) -> mx.array:
        loss: mx.array
        loss, gradient = loss_and_gradient(model, windows)
        gradient, _ = optim.clip_grad_norm(gradient, max_norm=1.0)
        optimizer.update(model, gradient)
        return loss

    began = time.monotonic()
    for number, windows in enumerate(batches(tokens), start=1):
        loss = step(windows)
        mx.eval(state, loss)
        if number % 25 == 0:
            print(f"step {number}/{steps}  loss {loss.item():.3f}", end="  ")
            print(f"{time.monotonic() - began:.0f} s", flush=True)


def heldout_loss(model: nn.Module, tokens: list[int], *, length: int = 256) -> float:
    """Mean cross entropy over consecutive windows of ``length`` tokens, in nats per token."""
    count = len(tokens) // length
    windows = mx.array(tokens[: count * length]).reshape(count, length)
    return float(np.mean([mean_loss(model, window[None]).item() for window in windows]))


def write_sorted_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_side_files(out: Path, tokenizer: bytes) -> None:
    """Everything of a Hugging Face folder except the weights, and the two excerpts."""
    (out / "tokenizer.model").write_bytes(tokenizer)
    write_sorted_json(out / "config.json", CONFIG)
    write_sorted_json(out / "tokenizer_config.json", TOKENIZER_CONFIG)
    special = {key: TOKENIZER_CONFIG[key] for key in ("bos_token", "eos_token", "unk_token")}
    write_sorted_json(out / "special_tokens_map.json", special)
    write_sorted_json(out / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": 2})
    for name, modules in (("calibration", CALIBRATION), ("heldout", HELDOUT)):
        text = excerpt(modules, EXCERPT[name])
        (out / f"{name}.txt").write_text(text, encoding="utf-8")
    notes = next(path for name in PROSE if (path := LIBRARY / "idlelib" / name).exists())
    (out / "heldout-prose.txt").write_text(read(notes)[: EXCERPT["heldout"]], encoding="utf-8")


def readme(parameters: int, loss: float) -> str:
    return README.format(
        parameters=parameters,
        tokens=sum(length * windows * steps for length, windows, steps in PHASES),
        python=sysconfig.get_python_version(),
        loss=loss,
        uniform=np.log(VOCABULARY),
        calibration=", ".join(CALIBRATION),
        heldout=", ".join(HELDOUT),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=OUT, help="folder to write (default: %(default)s)"
    )
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    texts = training_texts()
    pieces = train_tokenizer(texts)
    write_side_files(out, pieces)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    tokens = np.concatenate([np.array([BOS, *ids], np.int32) for ids in tokenizer.encode(texts)])
    print(f"{sum(map(len, texts)):,} characters, {len(tokens):,} tokens to train on", flush=True)

    mx.random.seed(SEED)
    model = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    train_fixture(model, tokens)

    stored = tree_map(lambda weight: weight.astype(mx.bfloat16), model.parameters())
    weights = dict(tree_flatten(stored))
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "pt"})
    model.update(tree_map(lambda weight: weight.astype(mx.float32), stored))
    heldout = (out / "heldout.txt").read_text(encoding="utf-8")
    loss = heldout_loss(model, [BOS, *tokenizer.encode(heldout)])
    parameters = sum(weight.size for weight in weights.values())
    (out / "README.md").write_text(readme(parameters, loss), encoding="utf-8")
    print(f"{parameters:,} parameters; held-out loss {loss:.3f} nats per token")


if __name__ == "__main__":
    main()
