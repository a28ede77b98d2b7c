"""Rows of training data as tokens, and what each must leave to learn."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from plastic_export.calibration.rows import Row, RowError, refusal


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
            raise refusal(error) from error
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
