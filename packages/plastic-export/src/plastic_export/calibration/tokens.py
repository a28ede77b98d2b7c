"""Texts in the tokens of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from plastic_core.files import noting

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


class TokenReader:
    """Reads texts as windows of the tokens of a checkpoint.

    A file of token ids (`read_token_ids`) needs no tokenizer: its rows are the windows, or it is
    one text, of which every window begins with the ``bos_token_id`` of the configuration if the
    text does.

    Args:
        checkpoint: The checkpoint whose model is to read them.
        tokenizer: Folder or Hub id of the tokenizer to take in place of its own.

    Attributes:
        config: The configuration of the checkpoint.
        rows: How many tokens the model has an embedding for.
        size: How many tokens the tokenizer has; that of the model while none was needed.
        counts: How often each token came in the text that was read last, windows or not.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizer: str | Path | None = None) -> None:
        self._checkpoint, self._place = checkpoint, tokenizer
        self.config = checkpoint.config
        self.rows = embedding_rows(checkpoint.config, checkpoint.folder / CONFIG)
        self.size = self.rows
        self.counts = np.zeros(0, np.int64)

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

    def windows(self, file: str | Path, *, length: int, limit: int | None = None) -> mx.array:
        """Cut the text of a file into windows, as `text_windows` does.

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
                return self._given(given, length, limit)
            text, tokenizer = read_text(file), self.tokenizer
            prefix = prefix_tokens(tokenizer)
            ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
            self.check([*prefix, *ids])
            self.counts = np.bincount(np.asarray(ids, np.int64))
            return cut_windows(ids, prefix, length=length, limit=limit)

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

    def _given(self, ids: NDArray[np.int64], length: int, limit: int | None) -> mx.array:
        if ids.ndim == 1:
            own = self.config.get("bos_token_id")
            prefix = [int(ids[0])] if int(ids[0]) == own else []
            return cut_windows(ids.tolist(), prefix, length=length, limit=limit)
        if ids.shape[1] != length:
            raise ValueError(f"each row holds {ids.shape[1]} tokens, and `window` is {length}")
        taken = len(ids) if limit is None else min(limit, len(ids))
        return mx.array(ids[evenly_spread(taken, len(ids))].astype(np.int32))
