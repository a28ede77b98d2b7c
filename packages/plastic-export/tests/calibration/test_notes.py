"""What a calibration text cannot show is said."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plastic_export.calibration.notes import FEW_KINDS, frequent_kinds, sliding_windows
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.checkpoint.warning import CheckpointWarning
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

Make = Callable[..., Path]
WORDS = [f"w{i}" for i in range(600)]
CONTROL = ["<|im_start|>", "<|im_end|>", "user"]


def read(folder: Path, text: Path, window: int = 24, windows: int = 8) -> np.ndarray:
    with open_checkpoint(folder) as checkpoint:
        return np.asarray(Calibration(text, window, windows).tokens(checkpoint))


def test_windows_shorter_than_the_sliding_window_are_noted(make_readable: Make, text: Path) -> None:
    with pytest.warns(CheckpointWarning, match=r"24 tokens are shorter .* 64; give --window 65"):
        read(make_readable(sliding_window=64), text)


@pytest.mark.parametrize(
    "config",
    [
        {"sliding_window": 24},
        {"sliding_window": None},
        {"sliding_window": 64, "use_sliding_window": False},
        {},
    ],
)
def test_nothing_is_noted_of_windows_that_reach_it(
    make_readable: Make, text: Path, config: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(make_readable(**config), text)


def test_the_sliding_window_of_the_text_part_counts() -> None:
    config = {"text_config": {"sliding_window": 512}, "vision_config": {"sliding_window": None}}
    assert [*sliding_windows(config)] == [512]


def test_a_text_of_one_window_is_noted(make_readable: Make, text: Path) -> None:
    text.write_text(text.read_text()[:40])
    with pytest.warns(CheckpointWarning, match="one window of 24 tokens is all of it"):
        read(make_readable(), text)


@pytest.fixture
def wordy(make_llama: Make) -> Path:
    """A checkpoint whose tokens are words, with control tokens for chats."""
    names = [*CONTROL, *WORDS]
    folder = make_llama("wordy", vocab_size=len(names))
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tokenizer.add_special_tokens(CONTROL[:2])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def chat(turn: int) -> str:
    """Turns of so many words each."""
    words = np.random.default_rng(0).choice(WORDS, 4000)
    turns = [" ".join(words[i : i + turn]) for i in range(0, len(words), turn)]
    return "".join(f"<|im_start|>user {words}<|im_end|>" for words in turns)


def test_control_tokens_that_carry_most_of_a_chat_are_named(wordy: Path, text: Path) -> None:
    text.write_text(chat(2))
    with pytest.warns(CheckpointWarning, match="half of its tokens are of 3 kinds, such as "):
        windows = read(wordy, text, windows=64)
    turns = windows.ravel().tolist()
    assert 0.15 < turns.count(0) / len(turns) < 0.25  # one token each, and not its letters
    assert abs(turns.count(0) - turns.count(1)) <= 1


def test_a_chat_of_long_turns_passes(wordy: Path, text: Path) -> None:
    text.write_text(chat(40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(wordy, text, windows=64)


def test_few_kinds_are_those_that_carry_half() -> None:
    assert frequent_kinds(np.ones(200, np.int64)) == []
    assert frequent_kinds(np.array([0, 30, 0, 50, 20])) == [3]
    assert frequent_kinds(np.ones(2 * FEW_KINDS, np.int64)) == []


def test_a_short_part_of_a_text_says_nothing_of_it(wordy: Path, text: Path) -> None:
    text.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 4000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(wordy, text, windows=1)
