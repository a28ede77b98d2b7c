"""Rows of a JSONL file in mlx-lm's formats: read line by line, and what each must hold."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, parse_object

FORMATS = '{"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [...]}'
_FIELDS = (("prompt", "completion"), ("messages",), ("text",))  # in mlx-lm's order
_BYTE_ORDER_MARKS = codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
Row = Mapping[str, Any]


class RowError(ValueError):
    """A row that cannot be learned from; says why in a few words, and what to do."""

    def __init__(self, reason: str, remedy: str = f"each line is one of {FORMATS}") -> None:
        super().__init__(reason)
        self.remedy = remedy


def fields_of(row: Row) -> tuple[str, ...]:
    """Return the fields that every row of a file has, as its first row tells.

    Raises:
        RowError: If it is of none of the formats.
    """
    for fields in _FIELDS:
        if all(name in row for name in fields):
            return fields
    raise RowError(f"Unsupported data format, its fields are {', '.join(row) or 'none'}")


def check_row(row: Row, fields: tuple[str, ...]) -> None:
    """Check that a row has these fields, each a text or, for messages, a chat.

    Raises:
        RowError: If one is missing or of another type: names it.
    """
    for name in fields:
        if name not in row:
            raise RowError(f"cannot be read: no '{name}'")
        if name == "messages":
            _check_chat(row[name])
        else:
            _check_text(f"`{name}`", row[name])
    if fields != ("text",):
        _check_tools(row.get("tools"))


def refusal(error: Exception) -> RowError:
    """Return why a row cannot be read, from what a tokenizer or its chat template raised."""
    named = isinstance(error, KeyError)
    what = f"no {error}" if named else " ".join(str(error).split())
    return RowError(f"cannot be read: {what or type(error).__name__}")


def read_rows(file: Path) -> dict[int, dict[str, Any]]:
    """Return the rows of a file by the number of their line, from 1; empty lines are none.

    Raises:
        FormatError: If there is no such file, or a line is no JSON object: names it.
    """
    if not file.is_file():
        raise FormatError.about(file, "there is no such file", f"give one line per row: {FORMATS}")
    content = file.read_bytes()
    if content.startswith(_BYTE_ORDER_MARKS):
        remedy = "save it as UTF-8 without one"
        raise FormatError.about(file, "it begins with a byte order mark", remedy)
    lines = enumerate(content.splitlines(), start=1)
    return {
        number: parse_object(line, Path(f"{file}: line {number}"), "correct it")
        for number, line in lines
        if line.strip()
    }


@contextlib.contextmanager
def at_line(file: Path, line: int, unit: str = "line") -> Iterator[None]:
    """Turn a `RowError` of a row into an error that names the line, or the row of a table.

    Raises:
        FormatError: In its place.
    """
    try:
        yield
    except RowError as error:
        raise FormatError.about(f"{file}: {unit} {line}", str(error), error.remedy) from error


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise RowError(f"cannot be read: {name} must be a string, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise RowError(f"cannot be read: {name} has half a character, U+{code:04X}") from None


def _check_chat(messages: Any) -> None:
    """Check the outside alone: what a message may hold is for the chat template to say."""
    if not isinstance(messages, list) or not messages:
        got = "an empty list" if messages == [] else _kind(messages)
        raise RowError(f"cannot be read: `messages` must be a list of messages, got {got}")
    for message in messages:
        if not isinstance(message, dict):
            raise RowError(f"cannot be read: a message must be an object, got {_kind(message)}")
        if "role" not in message:
            raise RowError("cannot be read: a message has no 'role'")
        _check_text("`role`", message["role"])
        if not isinstance(message.get("content"), list | None):
            _check_text("`content`", message["content"])


def _check_tools(tools: Any) -> None:
    """Check the outside alone, as of a chat."""
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        got = _kind(tools) if not isinstance(tools, list) else "one that holds something else"
        raise RowError(f"cannot be read: `tools` must be a list of objects, got {got}")


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "a string")
