"""Rows of training data in tokens, as mlx-lm's data sets make them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plastic_export.calibration.chats import Messages, chat_tokens, has_chat_template, messages_of
from plastic_export.calibration.rows import Row, RowError

ASSISTANT = "assistant"


class RowTokens(NamedTuple):
    """A row in tokens.

    Attributes:
        ids: Its tokens, int32.
        offset: How many of them begin it unlearned.
    """

    ids: NDArray[np.int32]
    offset: int


def row_tokens(row: Row, tokenizer: Any, *, window: int, mask_prompt: bool) -> RowTokens:
    """Return the tokens of a row, as ``mlx_lm.lora`` of the newest version makes them.

    Args:
        row: The row, checked.
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        window: Tokens that stay of a longer row: a text of so many needs no token that ends it.
        mask_prompt: Whether all but the last message of a chat is not learned.

    Raises:
        RowError: If the tokenizer or its chat template refuses the row or is missing, or there is
            no telling which tokens to mask.
    """
    if is_text(row):
        return RowTokens(_array(_text_tokens(row, tokenizer, window, mask_prompt)), 0)
    if not has_chat_template(tokenizer):
        remedy = 'put chat_template.jinja beside it, or give rows of {"text": ...}'
        raise RowError("cannot be read: the tokenizer has no chat template", remedy)
    messages = messages_of(row)
    ids = chat_tokens(tokenizer, messages, row.get("tools"))
    if not mask_prompt:
        return RowTokens(_array(ids), 0)
    prompt = _prompt_tokens(row, messages, len(messages) - 1, tokenizer)
    if prompt and not _begins(ids, prompt, tokenizer):
        raise RowError(
            "the chat template makes of its prompt alone what does not begin the whole row, "
            "so there is no telling which tokens to mask",
            "mend the chat template or train without --mask-prompt",
        )
    return RowTokens(_array(ids), len(prompt))


def is_text(row: Row) -> bool:
    """Tell whether a row is a text, by the fields that mlx-lm looks for first."""
    return "messages" not in row and not {"prompt", "completion"} <= row.keys()


def is_blank(row: Row) -> bool:
    """Tell whether there is nothing in a row to learn: its text or its last answer is empty."""
    if is_text(row):
        return not row["text"].strip()
    last = messages_of(row)[-1]
    said = {name: value for name, value in last.items() if name not in ("role", "name")}
    return last["role"] == ASSISTANT and not any(map(_says_something, said.values()))


def answer_start(row: Row, tokens: RowTokens, tokenizer: Any) -> int:
    """Return the number of tokens that stand before what a row has to teach.

    Of a chat that is learned as a whole this is what stands before the first turn of the
    assistant. Where the chat template does not tell, it is 0.
    """
    if tokens.offset or is_text(row):
        return tokens.offset
    messages = messages_of(row)
    answers = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
    if not answers or not answers[0]:
        return 0
    try:
        prompt = _prompt_tokens(row, messages, answers[0], tokenizer)
    except RowError:
        return 0
    shared = min(len(prompt), len(tokens.ids))
    differ = np.flatnonzero(tokens.ids[:shared] != _array(prompt[:shared]))
    return int(differ[0]) if len(differ) else shared


def _says_something(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


def _array(ids: list[int]) -> NDArray[np.int32]:
    return np.array(ids, np.int32)


def _text_tokens(row: Row, tokenizer: Any, window: int, mask_prompt: bool) -> list[int]:
    if mask_prompt:
        remedy = "train without --mask-prompt, or give prompts with completions, or chats"
        raise RowError("a text has no prompt to mask", remedy)
    ids: list[int] = tokenizer.encode(row["text"], verbose=False)
    end = tokenizer.eos_token_id
    if end is None and len(ids) < window:
        reason = "the tokenizer has no token that ends a text, and mlx-lm puts it after every row"
        raise RowError(reason, "name its 'eos_token' in tokenizer_config.json")
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _prompt_tokens(row: Row, messages: Messages, count: int, tokenizer: Any) -> list[int]:
    """Return the tokens of the first messages, up to where the answer that follows begins."""
    answered = messages[count]["role"] == ASSISTANT
    return chat_tokens(
        tokenizer, messages[:count], row.get("tools"), add_generation_prompt=answered
    )


def _begins(ids: list[int], prompt: list[int], tokenizer: Any) -> bool:
    """Tell whether a row begins with its prompt, in tokens or at least in text."""
    if ids[: len(prompt)] == prompt:
        return True
    text, asked = tokenizer.decode(ids), tokenizer.decode(prompt)
    return bool(asked) and text.startswith(asked)
