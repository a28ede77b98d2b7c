"""A calibration text, and how much of it is used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from plastic_export.calibration.notes import note_what_is_missing
from plastic_export.calibration.shipped_set import SHIPPED, shipped_record
from plastic_export.calibration.tokens import TokenReader
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.model.tokenizer import digests_in, tokenizer_folder


@dataclass(frozen=True)
class Calibration:
    """A calibration text and how much of it to use.

    Attributes:
        text: UTF-8 text file; rows of texts and chats, a ``.jsonl`` in mlx-lm's formats; or the ids
            of its tokens, a ``.npy`` or ``.json`` of integers: one row for a text, or one row per
            window. None stands for the texts of many kinds that this package ships.
        window: Tokens per window; each is run on its own, from an empty context.
        windows: How many windows at most, spread evenly over the text.
        tokenizer: Folder or Hub id of the tokenizer; by default that of the checkpoint.

    Examples:
        >>> calibration = Calibration("text.txt", window=24, windows=8)
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     calibration.tokens(checkpoint).shape
        (8, 24)
        >>> Calibration().record()["set"]
        {'name': 'mixed texts of plastic-export', 'version': 1}
    """

    text: str | Path | None = None
    window: int = 256
    windows: int = 128
    tokenizer: str | Path | None = None

    @property
    def file(self) -> Path:
        """Return where the text is."""
        return SHIPPED if self.text is None else Path(self.text)

    @property
    def name(self) -> str:
        """Return what messages call the text."""
        return "the shipped texts" if self.text is None else self.file.name

    def record(self) -> dict[str, Any]:
        """Return the entry of the manifest: the digests of text and tokenizer, not their places."""
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        record: dict[str, Any] = {"sha256": digest, "window": self.window, "windows": self.windows}
        if self.text is None:
            record["set"] = shipped_record()
        if self.tokenizer is not None:
            record["tokenizer"] = digests_in(tokenizer_folder(self.tokenizer))
        return record

    def tokens(self, checkpoint: Checkpoint) -> mx.array:
        """Cut the text into the windows that are used.

        Args:
            checkpoint: Its tokenizer is taken, unless another is given.

        Returns:
            Token ids, int32, of shape (windows, window).

        Raises:
            FormatError: If the tokenizer or the text cannot be read.
            ValueError: If the text holds fewer tokens than one window.
        """
        return self.cut(self.reader(checkpoint))

    def all_tokens(self, checkpoint: Checkpoint) -> mx.array:
        """Cut the text into all its windows, those among them that `tokens` leaves out."""
        return self.reader(checkpoint).windows(self.file, length=self.window)

    def reader(self, checkpoint: Checkpoint) -> TokenReader:
        """Return what reads the text in the tokens of a checkpoint."""
        return TokenReader(checkpoint, self.tokenizer)

    def cut(self, reader: TokenReader) -> mx.array:
        """Return the windows that are used, as `tokens` does, from a reader at hand."""
        windows = reader.windows(self.file, length=self.window, limit=self.windows)
        note_what_is_missing(self.file, windows, reader, is_all=self.windows > len(windows))
        return windows
