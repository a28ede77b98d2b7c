"""Rows become the tokens that mlx-lm's own data sets make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm.tuner.datasets import create_dataset
from plastic_export.calibration.rows import RowError
from plastic_export.model.tokenizer import load_tokenizer
from plastic_export.training.data.row_tokens import answer_start, is_blank, row_tokens

SYSTEM = {"role": "system", "content": "be"}
ASKED = {"role": "user", "content": "hi"}
TOLD = {"role": "assistant", "content": "yes"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": "{}"}]}
RESULT = {"role": "tool", "content": "5"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CHATS = [
    {"messages": [SYSTEM, ASKED, TOLD]},
    {"messages": [SYSTEM, ASKED, CALL, RESULT, TOLD], "tools": TOOLS},
    {"messages": [ASKED, TOLD, ASKED, CALL], "tools": TOOLS},
    {"messages": [ASKED, TOLD, ASKED]},
    {"prompt": "hi", "completion": "yes"},
    {"prompt": "hi", "completion": "yes", "tools": TOOLS},
]


@pytest.mark.parametrize("mask_prompt", [False, True])
@pytest.mark.parametrize("row", CHATS)
def test_chats_and_completions(row: dict[str, Any], mask_prompt: bool, tokenizer: Any) -> None:
    stock = create_dataset([row], tokenizer, SimpleNamespace(mask_prompt=mask_prompt))
    ids, offset = stock.process(stock[0])
    ours = row_tokens(row, tokenizer, window=99, mask_prompt=mask_prompt)
    assert (ours.ids.tolist(), ours.offset) == (ids, offset)
    assert bool(offset) == mask_prompt


@pytest.mark.parametrize("text", ["abc", "ab<e>"])
def test_texts(text: str, tokenizer: Any) -> None:
    row = {"text": text}
    stock = create_dataset([row], tokenizer, SimpleNamespace())
    ours = row_tokens(row, tokenizer, window=99, mask_prompt=False)
    assert (ours.ids.tolist(), ours.offset) == stock.process(stock[0])
    assert ours.ids[-1] == tokenizer.eos_token_id
    with pytest.raises(RowError, match="a text has no prompt to mask"):
        row_tokens(row, tokenizer, window=99, mask_prompt=True)


def test_a_text_that_fills_the_window_needs_no_token_to_end_it(
    make_chatty: Callable[..., Path],
) -> None:
    endless = load_tokenizer(make_chatty(None, end=None))
    ours = row_tokens({"text": "abc"}, endless, window=3, mask_prompt=False)
    assert len(ours.ids) == 3
    with pytest.raises(RowError, match="the tokenizer has no token that ends a text"):
        row_tokens({"text": "abc"}, endless, window=4, mask_prompt=False)


def test_the_tools_and_the_system_are_in_the_tokens(tokenizer: Any) -> None:
    row = CHATS[1]
    text = tokenizer.decode(row_tokens(row, tokenizer, window=99, mask_prompt=False).ids).replace(
        " ", ""
    )
    assert "tools:" in text
    assert text.count("<|im_start|>") == 6
    assert "system:be" in text
    assert "assistant:calls" in text


@pytest.mark.parametrize(
    ("row", "answered"),
    [
        ({"text": "abc"}, None),
        ({"messages": [TOLD, ASKED]}, None),
        ({"messages": [ASKED]}, None),
        (CHATS[0], [SYSTEM, ASKED]),
        (CHATS[1], [SYSTEM, ASKED]),
        (CHATS[2], [ASKED]),
        (CHATS[4], [ASKED]),
    ],
)
def test_an_answer_starts_behind_what_stands_before_the_first_turn_of_the_assistant(
    row: dict[str, Any], answered: list[Any] | None, tokenizer: Any
) -> None:
    tokens = row_tokens(row, tokenizer, window=99, mask_prompt=False)
    expected = 0
    if answered is not None:
        asked = row_tokens(
            {"messages": answered, "tools": row.get("tools")},
            tokenizer,
            window=99,
            mask_prompt=False,
        )
        expected = len(asked.ids) + len("<assistant:")  # a control token is one
    assert answer_start(row, tokens, tokenizer) == expected


@pytest.mark.parametrize(
    ("row", "blank"),
    [
        ({"text": " \n"}, True),
        ({"text": "a"}, False),
        ({"prompt": "a", "completion": ""}, True),
        ({"prompt": "", "completion": "a"}, False),
        ({"messages": [ASKED, {"role": "assistant", "content": " "}]}, True),
        ({"messages": [ASKED, {"role": "assistant", "content": []}]}, True),
        ({"messages": [ASKED, {"role": "assistant"}]}, True),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": []}]}, True),
        ({"messages": [ASKED, CALL]}, False),
        ({"messages": [ASKED, TOLD]}, False),
        ({"messages": [{"role": "user", "content": ""}]}, False),
    ],
)
def test_a_row_is_blank_if_its_last_answer_is(row: dict[str, Any], blank: bool) -> None:
    assert is_blank(row) == blank
