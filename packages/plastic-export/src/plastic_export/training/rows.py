"""Rows of training data in mlx-lm's formats: what each must hold, and its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

FORMATS = '{"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [...]}'
_FIELDS = (("prompt", "completion"), ("messages",), ("text",))  # in mlx-lm's order
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
    raise RowError("Unsupported data format")


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


def check_learnable(length: int, offset: int, window: int) -> None:
    """Check that a window leaves a token to learn of a row.

    Args:
        length: Tokens of the row.
        offset: Those that begin it unlearned.
        window: Those that stay.

    Raises:
        RowError: If none is left.
    """
    if length - max(1, offset) < 1:
        raise RowError("no token is left to learn", "remove the row or give it some text")
    if window <= offset:
        reason = f"its prompt has {offset} tokens, and a window of {window} leaves none to learn"
        raise RowError(reason, "remove the row or give a longer --window")


def check_ended(tokens: Sequence[int | None]) -> None:
    """Check that the tokenizer has the token that mlx-lm puts after every text.

    Raises:
        RowError: If it has none.
    """
    if None in tokens:
        reason = "the tokenizer has no token that ends a text, and mlx-lm puts it after every row"
        raise RowError(reason, "name its 'eos_token' in tokenizer_config.json")


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
        if isinstance(content := message.get("content"), str):
            _check_text("`content`", content)


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "a string")


class RowTokens:
    """The rows of a file as tokens, one at a time, as mlx-lm makes them.

    Args:
        rows: The rows, checked.
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        mask_prompt: Whether what is asked is not learned.

    Raises:
        RowError: If they are chats and the tokenizer has no chat template, or plain texts and
            there is no prompt to mask.
    """

    def __init__(self, rows: list[Row], tokenizer: Any, mask_prompt: bool) -> None:
        from mlx_lm.tuner.datasets import CacheDataset, create_dataset

        if "text" not in rows[0] and not tokenizer.has_chat_template:
            remedy = 'put chat_template.jinja beside it, or give rows of {"text": ...}'
            raise RowError("cannot be read: the tokenizer has no chat template", remedy)
        self._asked = _Asked(tokenizer)
        config = SimpleNamespace(mask_prompt=mask_prompt)
        try:
            self.dataset = CacheDataset(create_dataset(rows, self._asked, config))
        except ValueError as error:
            raise RowError(str(error).splitlines()[0].rstrip(":")) from None

    def read(self, index: int) -> tuple[list[int], int]:
        """Return the tokens of a row, and how many of them begin it unlearned.

        Raises:
            RowError: If the tokenizer or its chat template refuses the row, or the template of
                the prompt alone is no beginning of that of the whole row.
        """
        self._asked.chats.clear()
        try:
            tokens, offset = self.dataset[index]
        except Exception as error:  # tokenizers and chat templates raise what they like
            named = isinstance(error, KeyError)
            what = f"no {error}" if named else " ".join(str(error).split())
            raise RowError(f"cannot be read: {what or type(error).__name__}") from error
        if offset and not self._asked.begins_with_its_prompt():
            raise RowError(
                "the chat template makes of its prompt alone what does not begin the whole row, "
                "so there is no telling which tokens to mask",
                "mend the chat template or train without --mask-prompt",
            )
        return tokens, offset


class _Asked:
    """A tokenizer that keeps what its chat template was asked for: the row, then its prompt."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.chats: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        tokens = self._tokenizer.apply_chat_template(*args, **kwargs)
        self.chats.append(tokens)
        return tokens

    def begins_with_its_prompt(self) -> bool:
        """Tell whether the row begins with its prompt, in tokens or at least in text."""
        row, prompt = self.chats
        if row[: len(prompt)] == prompt:
            return True
        text, asked = self._tokenizer.decode(row), self._tokenizer.decode(prompt)
        return bool(asked) and text.startswith(asked)
