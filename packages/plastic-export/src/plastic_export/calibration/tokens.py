"""Texts in the tokens of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from plastic_core.files import noting

from plastic_export.calibration.records import record_tokens
from plastic_export.calibration.shipped_set import SHIPPED
from plastic_export.calibration.token_ids import read_token_ids
from plastic_export.calibration.vocabulary import (
    check_size,
    check_tokens,
    embedding_rows,
    tokenizer_size,
)
from plastic_export.checkpoint.reader import CONFIG, Checkpoint
from plastic_export.model.text import cut_windows, evenly_spread, prefix_tokens, read_text
from plastic_export.model.tokenizer import (
    digests_in,
    load_tokenizer,
    tokenizer_digests,
    tokenizer_folder,
)


class TokenText(NamedTuple):
    """A text in tokens.

    Attributes:
        ids: Its own tokens.
        prefix: The tokens that begin every text.
        end: The token that ends one; None if there is none.
    """

    ids: Sequence[int]
    prefix: Sequence[int]
    end: int | None


class Cut(Protocol):
    """A way of cutting a text into windows: token ids, int32, shape (windows, length)."""

    def __call__(self, text: TokenText, *, length: int, limit: int | None) -> mx.array: ...


def spread_windows(text: TokenText, *, length: int, limit: int | None) -> mx.array:
    """Cut a text as `cut_windows` does: windows that begin as texts do, spread evenly over it.

    Examples:
        >>> spread_windows(TokenText(range(10, 16), [1], None), length=3, limit=2).tolist()
        [[1, 10, 11], [1, 12, 13]]
    """
    return cut_windows(text.ids, text.prefix, length=length, limit=limit)


class TokenReader:
    """Reads texts as windows of the tokens of a checkpoint.

    A file of token ids (`read_token_ids`) needs no tokenizer: its rows are the windows, or it is
    one text, of which every window begins with the ``bos_token_id`` of the configuration if the
    text does. A ``.jsonl`` holds texts and chats, one per line (`record_tokens`).

    Args:
        checkpoint: The checkpoint whose model is to read them.
        tokenizer: Folder or Hub id of the tokenizer to take in place of its own.

    Attributes:
        config: The configuration of the checkpoint.
        rows: How many tokens the model has an embedding for.
        size: How many tokens the tokenizer has; that of the model while none was needed.
        counts: How often each token came in the text that was read last, windows or not.
        prefixes: The tokens that begin every window of a text, or would, by the name of its file.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizer: str | Path | None = None) -> None:
        self._checkpoint, self._place = checkpoint, tokenizer
        self.config = checkpoint.config
        self.rows = embedding_rows(checkpoint.config, checkpoint.folder / CONFIG)
        self.size = self.rows
        self.counts = np.zeros(0, np.int64)
        self.prefixes: dict[str, list[int]] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """Load the tokenizer.

        Raises:
            FormatError: If there is none that can be loaded without code of its own.
        """
        place, own = self._place, self._checkpoint.folder
        tokenizer = load_tokenizer(own if place is None else tokenizer_folder(place))
        self.size = min(self.rows, tokenizer_size(tokenizer))
        check_size(tokenizer, self.rows, own)
        return tokenizer

    def windows(
        self, file: str | Path, *, length: int, limit: int | None = None, cut: Cut = spread_windows
    ) -> mx.array:
        """Cut the text of a file into windows, by default as `text_windows` does.

        Raises:
            FormatError: If the tokenizer or the file cannot be read, or the model does not know a
                token.
            ValueError: If the text is shorter than one window. Errors name the file.
        """
        with noting(f"in {file}"):
            given = read_token_ids(file)
            if given is not None:
                check_tokens(given.ravel(), self.rows, self._checkpoint.folder)
                self.counts = np.bincount(given.ravel())
                first = int(given.flat[0])
                prefix = [first] if first == self.config.get("bos_token_id") else []
                self.prefixes[str(file)] = prefix
                return _given(given, prefix, length, limit, cut)
            prefix = self.prefixes[str(file)] = prefix_tokens(self.tokenizer)
            ids = self._ids(Path(file), prefix)
            self.check([*prefix, *ids])
            self.counts = np.bincount(np.asarray(ids, np.int64))
            text = TokenText(ids, prefix, self.tokenizer.eos_token_id)
            return cut(text, length=length, limit=limit)

    def _ids(self, file: Path, prefix: Sequence[int]) -> Sequence[int]:
        """Return the tokens of a file, those that begin every text left out."""
        if file.suffix == ".jsonl":
            return record_tokens(file, self.tokenizer, prefix, forgiving=file == SHIPPED)
        ids: list[int] = self.tokenizer.encode(
            read_text(file), add_special_tokens=False, verbose=False
        )
        return ids

    def check(self, ids: ArrayLike) -> None:
        """Refuse tokens of the tokenizer that the model does not know.

        Raises:
            FormatError: Naming the first one.
        """
        check_tokens(ids, self.rows, self._checkpoint.folder, self.tokenizer)

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return the texts of tokens, or their ids while no tokenizer was needed."""
        is_loaded = "tokenizer" in vars(self)
        return [str(self.tokenizer.convert_ids_to_tokens(i) if is_loaded else i) for i in ids]

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of the tokenizer's files, by name."""
        if self._place is None:
            return tokenizer_digests(self._checkpoint)
        return digests_in(tokenizer_folder(self._place))


def _given(
    ids: NDArray[np.int64], prefix: list[int], length: int, limit: int | None, cut: Cut
) -> mx.array:
    """Return token ids as windows: cut where they are one text, chosen where they are rows."""
    if ids.ndim == 1:
        return cut(TokenText(ids.tolist(), prefix, None), length=length, limit=limit)
    if ids.shape[1] != length:
        raise ValueError(f"each row holds {ids.shape[1]} tokens, and `window` is {length}")
    taken = len(ids) if limit is None else min(limit, len(ids))
    return mx.array(ids[evenly_spread(taken, len(ids))].astype(np.int32))
