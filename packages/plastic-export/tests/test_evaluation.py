"""Figures against their definitions, computed in NumPy float64 from the models' own logits."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import mlx.core as mx
import numpy as np
import pytest
import sentencepiece
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from numpy.typing import NDArray
from plastic_export.errors import FormatError
from plastic_export.evaluation import Evaluation, evaluate
from plastic_export.models import load_model, load_tokenizer, text_windows

MakeModel = Callable[..., Path]

VOCABULARY = 400
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
WINDOW = 12
TEXT = Path(json.__file__).read_text(encoding="utf-8")


def tokenizer_model(text: str) -> bytes:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=writer,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
    )
    return writer.getvalue()


@pytest.fixture(scope="session")
def pieces() -> bytes:
    """A sentencepiece model of the text."""
    return tokenizer_model(TEXT)


@pytest.fixture
def make_model(tmp_path: Path, pieces: bytes) -> MakeModel:
    """``make_model(name, seed=0, head=1.0)``: a random Llama whose output layer is scaled."""

    def make(name: str, *, seed: int = 0, head: float = 1.0, pieces: bytes = pieces) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(pieces)
        tokenizer = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (folder / "config.json").write_text(json.dumps(CONFIG))
        mx.save_safetensors(str(folder / "model.safetensors"), _weights(seed, head))
        return folder

    return make


def _weights(seed: int, head: float) -> dict[str, mx.array]:
    model = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    shapes = {name: weight.shape for name, weight in parameters.items()}
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    weights = {
        name: mx.random.normal(shape, key=key) * shape[-1] ** -0.5
        for (name, shape), key in zip(shapes.items(), list(keys), strict=True)
    }
    return weights | {"lm_head.weight": weights["lm_head.weight"] * head}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """The text as a file."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def log_probabilities(folder: Path, tokens: mx.array) -> NDArray[np.float64]:
    logits = np.asarray(load_model(folder)(tokens[:, :-1]), np.float64)
    total: NDArray[np.float64] = np.exp(logits).sum(axis=-1, keepdims=True)
    return logits - np.log(total)


def expected(folder: Path, reference: Path, windows: int) -> dict[str, NDArray[np.float64]]:
    """Each measure, averaged within each window."""
    tokens = text_windows(load_tokenizer(folder), TEXT, length=WINDOW, limit=windows)
    p, q = log_probabilities(folder, tokens), log_probabilities(reference, tokens)
    targets = np.asarray(tokens)[:, 1:, None]
    return {
        "nll": -np.take_along_axis(p, targets, axis=-1)[..., 0].mean(axis=1),
        "kl": (np.exp(q) * (q - p)).sum(axis=-1).mean(axis=1),
        "top1": (p.argmax(axis=-1) == q.argmax(axis=-1)).mean(axis=1),
    }


def rounding(scale: float) -> float:
    """What float32 leaves undetermined in a sum over the vocabulary of terms of this scale."""
    return 10 * VOCABULARY * float(np.finfo(np.float32).eps) * scale


def one(results: Sequence[Evaluation]) -> Evaluation:
    assert len(results) == 1
    return results[0]


def test_every_figure_is_its_definition(make_model: MakeModel, text: Path) -> None:
    folder, reference = make_model("a", head=4.0), make_model("b", seed=1, head=4.0)
    result = one(evaluate(folder, [text], reference=reference, window=WINDOW, windows=10))
    for name, values in expected(folder, reference, 10).items():
        atol = rounding(float(np.abs(values).max()))
        assert getattr(result, name) == pytest.approx(values.mean(), rel=0, abs=atol), name
        error = values.std(ddof=1) / math.sqrt(10)
        assert getattr(result, f"{name}_error") == pytest.approx(error, rel=0, abs=atol), name
    assert result.perplexity == math.exp(result.nll)
    assert result.perplexity_error == result.perplexity * result.nll_error
    assert (result.text, result.windows, result.tokens) == ("text.txt", 10, 10 * (WINDOW - 1))


def test_the_divergence_is_from_the_reference_and_not_to_it(
    make_model: MakeModel, text: Path
) -> None:
    sharp, flat = make_model("sharp", head=8.0), make_model("flat", head=0.0)
    result = one(evaluate(flat, [text], reference=sharp, window=WINDOW, windows=4))
    entropy = np.log(VOCABULARY) - one(evaluate(flat, [text], window=WINDOW, windows=4)).nll
    assert abs(entropy) < rounding(np.log(VOCABULARY))
    kl = expected(flat, sharp, 4)["kl"].mean()
    back = expected(sharp, flat, 4)["kl"].mean()
    assert abs(kl - back) > 100 * rounding(kl)
    assert result.kl == pytest.approx(kl, rel=0, abs=rounding(kl))


def test_a_model_does_not_diverge_from_itself(make_model: MakeModel, text: Path) -> None:
    folder = make_model("a")
    result = one(evaluate(folder, [text], reference=folder, window=WINDOW, windows=4))
    assert (result.kl, result.kl_error, result.top1, result.top1_error) == (0.0, 0.0, 1.0, 0.0)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(
    make_model: MakeModel, text: Path
) -> None:
    result = one(evaluate(make_model("flat", head=0.0), [text], window=WINDOW, windows=4))
    atol = rounding(math.log(VOCABULARY))
    assert result.nll == pytest.approx(math.log(VOCABULARY), rel=0, abs=atol)
    assert result.perplexity == pytest.approx(VOCABULARY, rel=atol)
    assert result.nll_error <= atol
    assert result.kl is None
    assert result.top1 is None


def test_one_window_has_no_standard_error(make_model: MakeModel, text: Path) -> None:
    result = one(evaluate(make_model("a"), [text], window=WINDOW, windows=1))
    assert math.isfinite(result.nll)
    assert result.nll_error is None


def test_batches_of_any_size_give_the_same_figures(
    make_model: MakeModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reference = make_model("a"), make_model("b", seed=1)

    def run() -> tuple[Evaluation, int]:
        seen: list[int] = []

        def track(items: Sequence[Any], description: str) -> Iterable[Any]:
            seen.append(len(items))
            return items

        results = evaluate(
            folder, [text], reference=reference, window=WINDOW, windows=10, track=track
        )
        return one(results), seen[0]

    several, batches = run()
    monkeypatch.setattr("plastic_export.evaluation._LOGITS", 1)
    single, most = run()
    assert (batches, most) == (2, 10)
    assert several.nll == pytest.approx(single.nll, rel=rounding(1))
    assert several.kl == pytest.approx(single.kl, rel=0, abs=rounding(1))


def test_each_text_is_measured_by_itself(make_model: MakeModel, text: Path) -> None:
    folder = make_model("a", head=4.0)
    other = text.with_name("other.txt")
    other.write_text("0 1 2 3 4 5 6 7 8 9 " * 20, encoding="utf-8")
    both = evaluate(folder, [text, other], window=WINDOW, windows=4)
    assert [r.text for r in both] == ["text.txt", "other.txt"]
    assert both[0] == one(evaluate(folder, [text], window=WINDOW, windows=4))
    assert both[1] == one(evaluate(folder, [other], window=WINDOW, windows=4))


def test_a_short_text_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(ValueError, match="fewer than one window of 256") as caught:
        evaluate(make_model("a"), [short])
    assert caught.value.__notes__ == [f"in {short}"]


def test_a_reference_with_another_tokenizer_is_refused(make_model: MakeModel, text: Path) -> None:
    other = tokenizer_model("".join(reversed(TEXT)))
    folder, reference = make_model("a"), make_model("b", pieces=other)
    with pytest.raises(ValueError, match=r"`reference` .* splits the text into other tokens"):
        evaluate(folder, [text], reference=reference, window=WINDOW)


def test_a_missing_folder_is_an_error_of_input(text: Path, tmp_path: Path) -> None:
    with pytest.raises((FormatError, OSError), match="nowhere"):
        evaluate(tmp_path / "nowhere", [text])
