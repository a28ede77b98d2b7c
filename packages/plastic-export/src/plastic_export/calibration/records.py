"""The rows of a JSONL file as one text in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plastic_export.calibration.chats import (
    Messages,
    chat_tokens,
    has_chat_template,
    messages_of,
    plain,
    without_system,
)
from plastic_export.calibration.rows import (
    Row,
    RowError,
    at_line,
    check_row,
    fields_of,
    read_rows,
)
from plastic_export.checkpoint.warning import warn_about


def record_tokens(
    file: Path, tokenizer: Any, prefix: Sequence[int], *, forgiving: bool = False
) -> list[int]:
    """Return the tokens of all rows of a file, one after the other.

    Every row may be of another format: a text, a chat, or a prompt with its completion, which is a
    chat of two turns. Rows become tokens one by one. After a text stands the token that ends
    texts, if the tokenizer has one, as in mlx-lm's training; a chat ends as its template ends it.
    The tokens that begin every text are left out, because windows bring them along.

    A tokenizer without a chat template belongs as a rule to a model that was never trained on
    chats, and whoever gives it some wants to see what it makes of the words. They are read as
    plain text, and a warning says so; ``plastic train`` refuses them, since what it would teach
    is a format that nothing asks for later.

    Args:
        file: JSONL in mlx-lm's formats.
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        prefix: The tokens that begin every text.
        forgiving: Whether a chat that the template refuses is written another way, and nothing is
            said of a template that is missing.

    Raises:
        FormatError: If a line is damaged, of no known format, or refused by the chat template:
            names it.
        OSError: If the file cannot be read.
    """
    reader = _RecordReader(tokenizer, prefix, forgiving)
    ids = list[int]()
    for line, row in read_rows(file).items():
        with at_line(file, line):
            ids += reader.read(row)
    if reader.plain_chats and not forgiving:
        reason = f"{reader.plain_chats} chats, and the tokenizer has no chat template"
        warn_about(file, reason, "they are read as plain text, with the names of the roles")
    return ids


class _RecordReader:
    """Makes tokens of rows; see `record_tokens`."""

    def __init__(self, tokenizer: Any, prefix: Sequence[int], forgiving: bool) -> None:
        self._tokenizer, self._prefix, self._forgiving = tokenizer, list(prefix), forgiving
        end = tokenizer.eos_token_id
        self._end = [] if end is None else [end]
        self.plain_chats = 0

    def read(self, row: Row) -> list[int]:
        fields = fields_of(row)
        check_row(row, fields)
        if fields == ("text",):
            return self._text(row["text"])
        return self._chat(messages_of(row), row.get("tools"))

    def _text(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return [*ids, *self._end]

    def _chat(self, messages: Messages, tools: Any) -> list[int]:
        if not has_chat_template(self._tokenizer):
            self.plain_chats += 1
            return self._text(plain(messages))
        try:
            ids = chat_tokens(self._tokenizer, messages, tools)
        except RowError:
            if not self._forgiving:
                raise
            return self._another_way(messages)
        return self._without_prefix(ids)

    def _another_way(self, messages: Messages) -> list[int]:
        """Render a chat without its system message, or as plain text where that fails too."""
        try:
            return self._without_prefix(chat_tokens(self._tokenizer, without_system(messages)))
        except RowError:
            return self._text(plain(messages))

    def _without_prefix(self, ids: list[int]) -> list[int]:
        length = len(self._prefix)
        return ids[length:] if ids[:length] == self._prefix else ids
