"""Windows of tokens: what begins every text stands once at the beginning of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plastic_export.model.text import prefix_tokens, text_windows
from plastic_export.model.tokenizer import load_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
SPECIAL = ["<s>", "</s>", "[gMASK]", "<sop>"]
IDS = {"<unk>": 0} | {name: i + 1 for i, name in enumerate([*SPECIAL, *LETTERS])}
TEMPLATES = {
    "none": ([], []),
    "one": (["<s>"], []),
    "two": (["[gMASK]", "<sop>"], []),
    "and an end": (["<s>"], ["</s>"]),
    "an end alone": ([], ["</s>"]),
}
"""What is put before and after every text."""


def saved(folder: Path, before: Sequence[str], after: Sequence[str], **config: Any) -> Any:
    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens(SPECIAL)
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(name, IDS[name]) for name in (*before, *after)],
        )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


@pytest.fixture
def make_tokenizer(tmp_path: Path) -> Callable[..., Any]:
    """``make_tokenizer(before, after, **config)``: a tokenizer with these template tokens."""
    return lambda *words, **config: saved(tmp_path / "tokenizer", *words, **config)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_window_begins_as_the_empty_text_does(
    make_tokenizer: Callable[..., Any], kind: str
) -> None:
    before, after = TEMPLATES[kind]
    tokenizer, prefix = make_tokenizer(before, after), [IDS[name] for name in before]
    assert prefix_tokens(tokenizer) == prefix
    assert tokenizer.encode("") == [*prefix, *(IDS[name] for name in after)]
    windows = np.asarray(text_windows(tokenizer, "".join(LETTERS), length=7))
    step = 7 - len(prefix)
    assert windows.tolist() == [
        [*prefix, *(IDS[letter] for letter in LETTERS[i : i + step])]
        for i in range(0, len(LETTERS) - step + 1, step)
    ]


@pytest.mark.parametrize("setting", [{}, {"bos_token": "<s>"}, {"add_bos_token": False}])
def test_a_tokenizer_that_puts_nothing_before_a_text_begins_no_window(
    make_tokenizer: Callable[..., Any], setting: dict[str, Any]
) -> None:
    windows = text_windows(make_tokenizer([], [], **setting), "abcdefgh", length=4)
    assert np.asarray(windows).tolist() == [[IDS[c] for c in "abcd"], [IDS[c] for c in "efgh"]]


@pytest.mark.parametrize("kind", ["one", "two", "and an end"])
@pytest.mark.parametrize("literally", [1, 2])
def test_what_the_text_itself_begins_with_does_not_stand_twice(
    make_tokenizer: Callable[..., Any], kind: str, literally: int
) -> None:
    before, after = TEMPLATES[kind]
    tokenizer, text = make_tokenizer(before, after), "".join(LETTERS)
    written = "".join(before) * literally
    plain, marked = (
        np.asarray(text_windows(tokenizer, t, length=7)) for t in (text, written + text)
    )
    np.testing.assert_array_equal(marked, plain)


def test_it_does_not_stand_twice_where_a_later_window_begins_with_it(
    make_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = make_tokenizer(["<s>"], [])
    windows = np.asarray(text_windows(tokenizer, "abc<s>defg<s>hi", length=4)).tolist()
    a, b, c, d, e, f, g, h = (IDS[letter] for letter in "abcdefgh")
    assert windows == [[1, a, b, c], [1, d, e, f], [1, g, 1, h]]


def test_control_tokens_of_a_chat_are_single_tokens(make_tokenizer: Callable[..., Any]) -> None:
    windows = text_windows(make_tokenizer(["<s>"], []), "ab</s>cd</s>", length=7)
    assert np.asarray(windows).tolist() == [[1, IDS["a"], IDS["b"], 2, IDS["c"], IDS["d"], 2]]


def test_a_window_that_its_beginning_fills_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(["[gMASK]", "<sop>"], [])
    with pytest.raises(ValueError, match="`length` must be at least 3 tokens, got 2"):
        text_windows(tokenizer, "abc", length=2)
