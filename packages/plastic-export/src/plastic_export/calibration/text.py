"""A calibration text, and how much of it is used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.model.text import file_windows
from plastic_export.model.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Calibration:
    """A calibration text and how much of it to use.

    Attributes:
        text: UTF-8 text file.
        window: Tokens per window; each is run on its own, from an empty context.
        windows: How many windows at most, spread evenly over the text.

    Examples:
        >>> calibration = Calibration("text.txt", window=24, windows=8)
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     calibration.tokens(checkpoint).shape
        (8, 24)
    """

    text: str | Path
    window: int = 256
    windows: int = 128

    def record(self) -> dict[str, Any]:
        """Return the entry of the manifest: the digest of the text, not its place."""
        digest = hashlib.sha256(Path(self.text).read_bytes()).hexdigest()
        return {"sha256": digest, "window": self.window, "windows": self.windows}

    def tokens(self, checkpoint: Checkpoint) -> mx.array:
        """Cut the text into the windows that are used.

        Args:
            checkpoint: Its tokenizer is taken.

        Returns:
            Token ids, int32, of shape (windows, window).

        Raises:
            FormatError: If the tokenizer or the text cannot be read.
            ValueError: If the text holds fewer tokens than one window.
        """
        return self._cut(checkpoint, self.windows)

    def all_tokens(self, checkpoint: Checkpoint) -> mx.array:
        """Cut the text into all its windows, those among them that `tokens` leaves out."""
        return self._cut(checkpoint, None)

    def _cut(self, checkpoint: Checkpoint, limit: int | None) -> mx.array:
        tokenizer = load_tokenizer(checkpoint.folder)
        return file_windows(tokenizer, self.text, length=self.window, limit=limit)
