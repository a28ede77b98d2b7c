"""The rows of one file in tokens, and what there is to say about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_export.calibration.chats import chat_tokens, messages_of
from plastic_export.calibration.rows import Row, RowError, at_line, check_row, fields_of
from plastic_export.training.data.left_out import RowsLeftOut
from plastic_export.training.data.row_tokens import (
    RowTokens,
    answer_start,
    is_blank,
    row_tokens,
)
from plastic_export.training.data.tables import RowTable


@dataclass(frozen=True)
class TokenizedFile:
    """The rows of a file that teach something.

    Attributes:
        file: The file.
        rows: Its rows, cut to the window.
        tokens: Tokens of these rows, whatever the window cuts off included.
        notes: Lines about rows that are left out or lose something.
    """

    file: Path
    rows: tuple[RowTokens, ...]
    tokens: int
    notes: tuple[str, ...]


def tokenize(table: RowTable, tokenizer: Any, *, window: int, mask_prompt: bool) -> TokenizedFile:
    """Turn the rows of a file into tokens; all have the format of the first one, as in mlx-lm.

    Args:
        table: The rows.
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        window: Tokens that stay of a longer row.
        mask_prompt: Whether what is asked is not learned.

    Raises:
        FormatError: If a row is none, or the tokenizer or its chat template refuses it: names the
            line.
    """
    checked = _checked(table)
    left_out = RowsLeftOut(table.unit, window)
    rows, tokens = list[RowTokens](), 0
    for number, row in checked.items():
        with at_line(table.file, number, table.unit):
            found = row_tokens(row, tokenizer, window=window, mask_prompt=mask_prompt)
        length = len(found.ids)
        if is_blank(row) or length <= max(1, found.offset):
            left_out.empty(number)
        elif length > window and answer_start(row, found, tokenizer) >= window:
            left_out.cut_away(number)
        else:
            rows.append(RowTokens(found.ids[:window], found.offset))
            tokens += length
            left_out.shortened += length > window
    notes = [*left_out.lines(len(checked)), *_without_tools(checked, tokenizer)]
    return TokenizedFile(table.file, tuple(rows), tokens, tuple(notes))


def _checked(table: RowTable) -> dict[int, Row]:
    """Return the rows with the fields of their format alone."""
    checked, fields = dict[int, Row](), tuple[str, ...]()
    for number, row in table.rows.items():
        with at_line(table.file, number, table.unit):
            fields = fields or fields_of(row)
            check_row(row, fields)
        checked[number] = {name: row[name] for name in (*fields, "tools") if name in row}
    return checked


def _without_tools(rows: dict[int, Row], tokenizer: Any) -> Iterator[str]:
    """Say that the chat template does not show the tools, if the first row that has some tells."""
    having = [row for row in rows.values() if row.get("tools")]
    if not having or "text" in having[0]:
        return
    messages = messages_of(having[0])
    try:
        shown = chat_tokens(tokenizer, messages, having[0]["tools"])
        hidden = chat_tokens(tokenizer, messages)
    except RowError:
        return
    if shown == hidden:
        yield f"{len(having)} rows have `tools`, which the chat template does not show"
