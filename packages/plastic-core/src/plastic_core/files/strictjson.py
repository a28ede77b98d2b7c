"""JSON read so that two readers cannot understand it differently."""

from __future__ import annotations

import json
import re
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from plastic_core.files.errors import FormatError

_DEEPEST = 32
_ALL_BUT_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[^][{}"]++', re.DOTALL)
_NUMBERS_ONLY = "the JSON of a header knows no {}"


def parse_object(text: bytes, file: Path, remedy: str, *, header: bool = False) -> dict[str, Any]:
    """Parse a JSON object in which every key is unique.

    Args:
        text: UTF-8 without a byte order mark.
        file: File that it comes from, for the message.
        remedy: What to do about it, for the message.
        header: Hold to the letter of JSON, as a safetensors header must: no NaN, no
            Infinity, and ``-0`` is not an integer. Configuration files in use break this.

    Returns:
        The object.

    Raises:
        FormatError: If it is not UTF-8, not JSON, nested more than 32 deep, not an object,
            or if some object in it names a key twice.

    Examples:
        >>> parse_object(b'{"a": 1, "a": 2}', Path("x.json"), "write it again")
        Traceback (most recent call last):
        plastic_core...FormatError: x.json: the key 'a' appears twice; write it again
    """

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise FormatError.about(file, f"the key {_twice(pairs)!r} appears twice", remedy)
        return found

    strict: dict[str, Any] = {"parse_constant": _refused, "parse_int": _integer} if header else {}
    try:
        decoded = text.decode("utf-8")
        _check_depth(decoded)
        value = json.loads(decoded, object_pairs_hook=object_of, **strict)
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError.about(file, f"not valid JSON ({error})", remedy) from None
    if not isinstance(value, dict):
        raise FormatError.about(file, "the JSON is not an object", remedy)
    return value


def _twice(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    return next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _refused(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number")


def _integer(digits: str) -> int | float:
    return -0.0 if digits == "-0" else int(digits)


def _check_depth(text: str) -> None:
    """Refuse deep nesting before the parser, which recurses, sees it."""
    brackets = _ALL_BUT_BRACKETS.sub("", text)
    steps = (1 if bracket in "[{" else -1 for bracket in brackets)
    if max(accumulate(steps), default=0) > _DEEPEST:
        raise ValueError(f"nested more than {_DEEPEST} deep")
