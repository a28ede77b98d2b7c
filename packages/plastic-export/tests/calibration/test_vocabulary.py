"""Tokenizers with more tokens than the model, and vocabularies that are padded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from plastic_core.files import FormatError
from plastic_export.calibration.text import Calibration
from plastic_export.calibration.vocabulary import embedding_rows
from plastic_export.checkpoint.warning import CheckpointWarning
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.compression.planning import plan_checkpoint
from plastic_export.evaluation.evaluation import evaluate
from plastic_export.healing.heal_folder import heal
from plastic_export.healing.loop import HealingOptions
from plastic_export.plan.choices import Choices
from plastic_export.reporting.evaluation.evaluate import present_evaluations
from plastic_export.reporting.heal import present_healed
from plastic_export.training.run import train
from plastic_export.training.settings import TrainingOptions

Make = Callable[..., Path]
KNOWN = 80  # tokens of the tokenizer
NARROW = 70


def few(text: Path, **options: Any) -> Calibration:
    return Calibration(text, window=24, windows=8, **options)


def planned(source: Path, text: Path) -> Path:
    file = text.with_name("plan.json")
    choices = Choices(bits=(2, 4))
    plan_checkpoint(source, file, calibration=few(text), budgets=[3.5], choices=choices)
    return file


def compressed(source: Path, text: Path) -> Path:
    out = text.with_name("by_rank")
    compress(source, out, keep=0.8, calibration=few(text))
    return out


def evaluated(source: Path, text: Path) -> None:
    evaluate(source, [text], window=24, windows=8)


def healed(source: Path, text: Path) -> None:
    out = text.with_name("dense")
    compress(source, out, keep=0.9)
    heal(out, source, calibration=few(text), options=HealingOptions(steps=1))


def trained(source: Path, text: Path) -> None:
    data, file = text.with_name("data"), source / "tokenizer_config.json"
    data.mkdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "0"}))
    rows = [json.dumps({"text": text.read_text()[i : i + 20]}) for i in range(0, 400, 20)]
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text("\n".join(rows))
    train(source, data, text.with_name("RUN"), TrainingOptions(steps=1, batch=1, window=24))


COMMANDS = {
    "plan": planned,
    "compress": compressed,
    "evaluate": evaluated,
    "heal": healed,
    "train": trained,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_text_with_a_token_that_the_model_does_not_know_is_refused_in_a_line(
    make_llama: Make, text: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_llama(vocab_size=NARROW)
    said = f"its embedding has {NARROW} tokens, the tokenizer {KNOWN}: the text holds "

    def too_late(*words: object, **options: object) -> None:
        pytest.fail("a model was run first")

    for room in ("calibration.loss_grams", "training.plastic_model", "healing.heal_folder"):
        monkeypatch.setattr(f"plastic_export.{room}.load_model", too_late)
    for room in ("calibration.input_grams", "evaluation.streaming"):
        monkeypatch.setattr(f"plastic_export.{room}.load_for_inference", too_late)
    with (
        pytest.raises(FormatError, match=re.escape(said) + r"'.', number 7\d") as refused,
        pytest.warns(CheckpointWarning, match=f"tokenizer has {KNOWN} tokens, .* {NARROW}"),
    ):
        COMMANDS[command](source, text)
    assert "\n" not in str(refused.value)


def test_a_text_of_known_tokens_alone_is_read_and_the_others_are_named(
    make_llama: Make, text: Path
) -> None:
    letters = [c for c in text.read_text() if ord(c) - 46 < NARROW]
    text.write_text("".join(letters))
    with pytest.warns(CheckpointWarning, match="'t' is the first that the model does not know"):
        evaluated(make_llama(vocab_size=NARROW), text)


@pytest.fixture
def padded(make_readable: Make, tiny_weights: dict[str, mx.array]) -> Path:
    """The tiny checkpoint with sixteen rows of zeros more in its vocabulary."""
    rows = mx.zeros((16, 64), mx.bfloat16)
    both = ("model.embed_tokens.weight", "lm_head.weight")
    weights = tiny_weights | {name: mx.concatenate([tiny_weights[name], rows]) for name in both}
    return make_readable("padded", weights=weights, vocab_size=KNOWN + 16)


def test_padding_takes_no_part_in_what_is_measured(
    make_readable: Make, padded: Path, text: Path
) -> None:
    plain, options = make_readable(), {"window": 24, "windows": 8}
    (alone,), (wide,) = (evaluate(source, [text], **options) for source in (plain, padded))
    assert wide.nll == pytest.approx(alone.nll, rel=1e-6)
    assert (alone.vocabulary, alone.padding) == (KNOWN, 0)
    assert (wide.vocabulary, wide.padding) == (KNOWN, 16)
    for source, reference in ((plain, padded), (padded, plain), (padded, padded)):
        (result,) = evaluate(source, [text], reference=reference, **options)
        assert result.kl == pytest.approx(0, abs=1e-6)
        assert result.top1 == 1
        said = "compared on the 80 tokens that all know; 16 rows of padding take no part"
        assert said in present_evaluations([result]).lines


def test_nothing_is_said_of_padding_where_there_is_none(make_readable: Make, text: Path) -> None:
    source, out = make_readable(), text.with_name("out")
    execute_plan(source, out, planned(source, text))
    options = HealingOptions(steps=2)
    plain = heal(out, source, text.with_name("a"), calibration=few(text), options=options)
    assert (plain.vocabulary, plain.padding) == (KNOWN, 0)
    assert "padding" not in str(present_healed(plain).lines)


def test_padding_takes_no_part_in_healing(padded: Path, text: Path) -> None:
    out = text.with_name("out")
    execute_plan(padded, out, planned(padded, text))
    healed = heal(out, padded, calibration=few(text), options=HealingOptions(steps=2))
    assert (healed.vocabulary, healed.padding) == (KNOWN, 16)
    assert "80 tokens that both know, 16 rows of padding" in str(present_healed(healed).lines)


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        ({"model_type": "gpt2", "n_positions": 1024, "vocab_size": 50}, 50),
        ({"model_type": "gemma3", "vocab_size": 60, "text_config": {"vocab_size": 90}}, 60),
    ],
)
def test_the_tokens_of_a_model_are_counted_whatever_else_it_embeds(
    config: dict[str, Any], rows: int
) -> None:
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 1, "n_ctx": 64, "layer_norm_epsilon": 1e-5}
    inner = {
        "model_type": "gemma3_text",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "head_dim": 16,
        "intermediate_size": 32,
    }
    text = {"text_config": config["text_config"] | inner} if "text_config" in config else {}
    assert embedding_rows(sizes | config | text) == rows
