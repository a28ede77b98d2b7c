"""Tokens as GGUF lists them: texts, scores and kinds, padded to the embedding."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class TokenKind(IntEnum):
    """What llama.cpp does with a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class TokenTable:
    """The tokens of a vocabulary, by their id.

    Attributes:
        texts: Their texts.
        kinds: What each is.
        scores: Their scores; empty where merges order them.

    Examples:
        >>> table = TokenTable(["a"], [TokenKind.NORMAL])
        >>> table.pad(3)
        >>> table.texts
        ['a', '[PAD1]', '[PAD2]']
    """

    texts: list[str]
    kinds: list[TokenKind]
    scores: list[float] = field(default_factory=list)

    def put(self, index: int, text: str, kind: TokenKind) -> None:
        """Give the token at ``index``, an old or a new one, a text and a kind."""
        self.pad(index + 1)
        self.texts[index], self.kinds[index] = text, kind

    def pad(self, size: int) -> None:
        """Fill up with unused tokens."""
        missing = range(len(self.texts), size)
        self.texts += [f"[PAD{i}]" for i in missing]
        self.kinds += [TokenKind.UNUSED] * len(missing)
        if self.scores:
            self.scores += [-10000.0] * len(missing)

    def add_to(self, writer: Any) -> None:
        """Add the tokens to the metadata of a writer."""
        writer.add_token_list([text.encode() for text in self.texts])
        writer.add_token_types([int(kind) for kind in self.kinds])
        if self.scores:
            writer.add_token_scores(self.scores)
