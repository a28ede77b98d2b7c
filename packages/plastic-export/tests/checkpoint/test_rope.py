"""Rotary settings that mlx-lm's model does not take up are told before the work."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plastic_export.checkpoint.rope import warn_of_ignored_rope
from plastic_export.checkpoint.warning import CheckpointWarning
from plastic_export.cli.command import main
from plastic_export.model.stock import built

Make = Callable[..., Path]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 80,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "sliding_window": 64,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 16,
    "logit_scale": 1.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
PLAIN = {"rope_theta": 5e5, "rope_type": "default"}
NESTED = {
    "full_attention": {"rope_theta": 777.0, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 55.0, "rope_type": "default"},
}
IGNORED: dict[str, tuple[dict[str, Any], str]] = {
    "the base": ({"model_type": "llama", "rope_parameters": PLAIN}, "base 10000 for 500000.0"),
    "a scaling": (
        {"model_type": "llama", "rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5} | YARN},
        "ignores 'rope_parameters': it takes base 500000.0, scale 1.0",
    ),
    "kinds of layers": (
        {"model_type": "gemma3_text", "rope_parameters": NESTED},
        "base 10000.0 for 55.0, scale 1.0 for 0.125",
    ),
    "the text of several parts": (
        {
            "model_type": "gemma3",
            "text_config": SIZES | {"model_type": "gemma3_text", "rope_parameters": NESTED},
        },
        "base 10000.0 for 55.0, scale 1.0 for 0.125",
    ),
    "part of the entries": (
        {
            "model_type": "phi",
            "layer_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
        },
        "dims 6 for 4",
    ),
    "a scaling in older entries": (
        {"model_type": "cohere", "rope_scaling": {"type": "linear", "factor": 8.0}},
        "ignores the scaling of its rotary embedding, 'linear'",
    ),
    "a type that it cannot": (
        {"model_type": "llama", "rope_parameters": PLAIN | {"rope_type": "own", "factor": 2.0}},
        "asks for what it cannot do",
    ),
}
TAKEN: dict[str, dict[str, Any]] = {
    "older entries": {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": YARN},
    "both": {"model_type": "llama", "rope_theta": 5e5, "rope_parameters": PLAIN},
    "what it takes anyhow": {"model_type": "llama", "rope_parameters": PLAIN | {"rope_theta": 1e4}},
    "newer entries": {
        "model_type": "qwen3",
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_theta": 5e5} | YARN,
    },
    "older entries of kinds": {
        "model_type": "gemma3_text",
        "rope_theta": 777.0,
        "rope_local_base_freq": 55.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "sections for images": {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]},
    },
}


@pytest.mark.parametrize("kind", IGNORED)
def test_what_is_ignored_is_told_with_what_is_taken_instead(kind: str) -> None:
    config, said = IGNORED[kind]
    with pytest.warns(CheckpointWarning) as told:
        warn_of_ignored_rope(SIZES | config, Path("config.json"), built)
    (message,) = (str(warning.message) for warning in told)
    assert said in message
    assert "not the one of the configuration" in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", TAKEN)
def test_nothing_is_told_of_what_is_taken_up(kind: str) -> None:
    built(json.loads(json.dumps(SIZES | TAKEN[kind])))  # it is a model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_ignored_rope(SIZES | TAKEN[kind], Path("config.json"), built)


@pytest.fixture
def newer(make_readable: Make) -> Path:
    """A checkpoint as transformers 5 writes it."""
    folder = make_readable("newer", rope_parameters=PLAIN)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_command_that_runs_the_model_tells_it_once(
    newer: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out, few = text.with_name("plan.json"), text.with_name("out"), ("--window", 24)
    few = (*few, "--windows", 8)
    data, file = text.with_name("data"), newer / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "0"}))
    data.mkdir()
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text('{"text": "abcdefghij"}\n' * 4)
    short = ("--steps", 2, "--batch", 2, "--window", 32, "--rank", 2)
    for words in (
        ("plan", newer, "--calibration", text, "--out", plan, "--bits", "2,4", "--keep", 0.3, *few),
        ("compress", newer, text.with_name("rank"), "--keep", 0.8, "--calibration", text, *few),
        ("evaluate", newer, "--text", text, *few),
        ("train", newer, "--data", data, "--out", text.with_name("RUN"), *short),
    ):
        with pytest.raises(SystemExit, match="0"):
            main([str(word) for word in words])
        assert capsys.readouterr().err.count("base 10000 for 500000.0") == 1, words[0]
    with pytest.raises(SystemExit, match="0"):
        main([str(word) for word in ("compress", newer, out, "--plan", plan)])
    capsys.readouterr()
    words = ("heal", out, "--reference", newer, "--calibration", text, "--steps", 2, *few)
    with pytest.raises(SystemExit, match="0"):
        main([str(word) for word in words])
    assert capsys.readouterr().err.count("base 10000 for 500000.0") == 2  # of both folders
