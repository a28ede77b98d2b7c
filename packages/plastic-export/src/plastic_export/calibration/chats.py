"""Chats in the tokens of a checkpoint, as its chat template renders them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from plastic_export.calibration.rows import Row, refusal

Messages = Sequence[Mapping[str, Any]]


def messages_of(row: Row) -> Messages:
    """Return the messages of a row; a prompt and its completion are two, as for mlx-lm."""
    if "messages" in row:
        return list(row["messages"])
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]


def has_chat_template(tokenizer: Any) -> bool:
    """Tell whether a tokenizer of mlx-lm renders chats, which that of 0.28 does not say itself."""
    known: bool | None = getattr(tokenizer, "has_chat_template", None)
    return bool(tokenizer.chat_template) if known is None else known


def chat_tokens(tokenizer: Any, messages: Messages, tools: Any = None, **options: Any) -> list[int]:
    """Return the tokens of a chat, every control token of the template as one.

    Args:
        tokenizer: mlx-lm's ``TokenizerWrapper``, with a chat template.
        messages: The turns.
        tools: What the assistant may call, in the form that the template knows.
        **options: What else the template is told, such as ``add_generation_prompt``.

    Raises:
        RowError: If the template refuses the chat.
    """
    try:
        return list(
            tokenizer.apply_chat_template(messages, tools=tools, return_dict=False, **options)
        )
    except Exception as error:  # chat templates raise what they like
        raise refusal(error) from error


def plain(messages: Messages) -> str:
    """Return a chat as plain text: every message as its role, a colon and what it says.

    What a message holds beside its content, such as a call of a tool, is written as JSON.
    """
    return "\n\n".join(f"{message['role']}: {_said(message)}" for message in messages)


def without_system(messages: Messages) -> Messages:
    """Return a chat whose first message is not the system's, for templates that know no such role.

    What the system said stands before what the user says first.
    """
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _said(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    other = {name: value for name, value in message.items() if name != "role"}
    return json.dumps(other, ensure_ascii=False)
