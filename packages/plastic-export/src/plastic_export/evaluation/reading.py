"""Checkpoints run over the windows of texts, and measured, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError
from plastic_runtime import Track

from plastic_export.evaluation.measures import LogProbabilities, Windows, measures_of, rows_at_once
from plastic_export.evaluation.saved_reference import (
    SavedReference,
    reference_bytes,
    write_reference,
)
from plastic_export.evaluation.streaming import log_probabilities_by_blocks

_NOT_FINITE = (
    "look for NaN and infinities in the weights; a model stored in float16 may need bfloat16"
)


class _Batch(NamedTuple):
    text: int
    first: int  # window, of all texts together
    tokens: mx.array


@dataclass(frozen=True)
class Reading:
    """What checkpoints are run over.

    Attributes:
        texts: Texts in the tokens of all of them.
        vocabulary: How many tokens take part, the rest being padding.
        rows: How many tokens the widest of them has logits for.
        track: Wraps the loop over the blocks of a model.
    """

    texts: Sequence[Windows]
    vocabulary: int
    rows: int
    track: Track

    def measure(
        self, source: str | Path, folder: Path, reference: SavedReference | None
    ) -> list[NDArray[np.float64]]:
        """Measure a checkpoint; no more than a block of it is in memory.

        Returns:
            For each text what `measures_of` returns of its windows.

        Raises:
            FormatError: If its predictions are not finite.
        """
        found: list[list[NDArray[np.float64]]] = [[] for _ in self.texts]
        for batch, log_p in zip(self._batches(), self._predictions(folder), strict=True):
            log_q = None
            if reference is not None:
                log_q = reference.read(batch.first, len(batch.tokens), self.vocabulary)
            found[batch.text].append(measures_of(batch.tokens, log_p, log_q))
        measured = [np.hstack(parts) for parts in found]
        for (text, _), values in zip(self.texts, measured, strict=True):
            if not np.isfinite(values).all():
                reason = f"its predictions of {text} are not finite"
                raise FormatError.about(source, reason, _NOT_FINITE)
        return measured

    def write(
        self,
        file: str | os.PathLike[str],
        source: str | Path,
        folder: Path,
        settings: Mapping[str, Any],
    ) -> None:
        """Write the log-probabilities of a checkpoint to a file.

        Raises:
            FormatError: If they are not finite.
        """
        try:
            write_reference(file, self.shapes, self._predictions(folder), settings)
        except ValueError as error:
            reason = "its predictions are not finite"
            raise FormatError.about(source, reason, _NOT_FINITE) from error

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Tokens and vocabulary of what is predicted in every window."""
        return [(t.shape[1] - 1, self.vocabulary) for _, t in self.texts for _ in range(len(t))]

    @property
    def reference_bytes(self) -> int:
        """Bytes of the file that `write` writes, but for its header."""
        return reference_bytes(self.shapes)

    def _predictions(self, folder: Path) -> Iterator[LogProbabilities]:
        inputs = [batch.tokens[:, :-1] for batch in self._batches()]
        return log_probabilities_by_blocks(folder, inputs, self.vocabulary, self.track)

    def _batches(self) -> Iterator[_Batch]:
        first = 0
        for number, (_, tokens) in enumerate(self.texts):
            rows = rows_at_once(tokens.shape[1], self.rows)
            for start in range(0, len(tokens), rows):
                yield _Batch(number, first + start, tokens[start : start + rows])
            first += len(tokens)
