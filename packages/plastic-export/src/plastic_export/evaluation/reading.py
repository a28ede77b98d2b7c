"""Checkpoints run over the windows of texts, and measured, one after the other."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from plastic_core.files import FormatError, memory_limit
from plastic_runtime import Track
from plastic_runtime.distributed import Team, stretch

from plastic_export.estimate.limits import Estimate, Say, Smaller, announce, check_disk
from plastic_export.estimate.model_shape import ModelShape
from plastic_export.estimate.peaks import running_peak, whole_peak
from plastic_export.estimate.phases import evaluation_work
from plastic_export.estimate.speed import Work
from plastic_export.evaluation.estimates import RunSpeed
from plastic_export.evaluation.measures import (
    ROWS,
    LogProbabilities,
    TokenMeasures,
    Windows,
    gathered_measures,
    joined,
    measures_of,
    rows_at_once,
)
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


class Measured(NamedTuple):
    """What a checkpoint showed.

    Attributes:
        texts: The measures of each text.
        lost: For each text where its predictions stop being finite, None where they never do.
        runtime: What all of it took.
    """

    texts: list[TokenMeasures]
    lost: list[str | None]
    runtime: RunSpeed


@dataclass(frozen=True)
class Reading:
    """What checkpoints are run over.

    Attributes:
        texts: Texts in the tokens of all of them.
        vocabulary: How many tokens take part, the rest being padding.
        rows: How many tokens the widest of them has logits for.
        shapes: The sizes of the checkpoint in each folder.
        memory: Bytes of memory that a run may take; None for what the machine has.
        track: Wraps the loop over the blocks of a model.
        context: How many tokens of each window are read before one is scored.
        both_directions: Whether KL(model || reference) is measured too.
        team: The processes that share the windows: each has a stretch of the batches.
    """

    texts: Sequence[Windows]
    vocabulary: int
    rows: int
    shapes: Mapping[Path, ModelShape]
    memory: int | None
    track: Track
    context: int = 0
    both_directions: bool = False
    team: Team = field(default_factory=Team)

    def announce(self, say: Say | None, *, runs: int, kept: bool, file: str | Path | None) -> None:
        """Tell what the runs will take, and refuse them where that is not there.

        Args:
            say: Takes the line.
            runs: How many checkpoints are run.
            kept: Whether the log-probabilities of one are kept.
            file: Where, if not in a temporary file.

        Raises:
            ValueError: If not one window fits into memory, or there are more processes than
                batches.
            OSError: If a disk is too small.
        """
        self._check_enough()
        tokens = sum(batch.tokens[:, 1:].size for batch in self._batches())
        spooled = 2 * 4 * tokens * max(shape.width for shape in self.shapes.values())
        saved = reference_bytes(self.shapes_of_windows) if kept else 0
        check_disk(Path(tempfile.gettempdir()), spooled + (saved if file is None else 0))
        if file is not None:
            check_disk(Path(file).absolute().parent, saved, Path(file))
        work = sum((evaluation_work(s, tokens, 1) for s in self.shapes.values()), Work())
        estimate = Estimate(work.times(runs / len(self.shapes)), self._peak(1), spooled + saved)
        announce(estimate, memory=self.memory, say=say, smaller=self._shorter())

    def measure(
        self,
        source: str | Path,
        folder: Path,
        reference: SavedReference | None,
        *,
        adapter: Path | None = None,
        own: bool = False,
    ) -> Measured:
        """Measure a checkpoint; no more than a block of it is in memory.

        Args:
            source: What messages call it.
            folder: Where it is.
            reference: What another holds of the same windows.
            adapter: Folder of an adapter that is laid over it.
            own: Whether the reference holds the windows of this process alone.

        Raises:
            FormatError: If no prediction of a text is finite.
        """
        mx.reset_peak_memory()
        began, blocks = time.perf_counter(), list[str]()
        found: list[list[TokenMeasures]] = [[] for _ in self.texts]
        batches, predicted = self._batches(), self._predictions(folder, blocks, adapter)
        before = batches[0].first if own else 0
        for batch, log_p in zip(batches, predicted, strict=True):
            log_q = None
            if reference is not None:
                log_q = reference.read(batch.first - before, len(batch.tokens), self.vocabulary)
            both = self.both_directions
            measures = measures_of(batch.tokens, log_p, log_q, both_directions=both)
            found[batch.text].append(measures)
        scored = [tokens.shape[1] - 1 - self.context for _, tokens in self.texts]
        some = [joined(parts) if parts else None for parts in found]
        measured = gathered_measures(self.team, some, scored)
        blocks = sorted(chain.from_iterable(self.team.gathered(blocks)), key=_numbers)
        seconds = time.perf_counter() - began
        places = [_place(each, blocks) for each in measured]
        for (text, _), each, place in zip(self.texts, measured, places, strict=True):
            if not each.is_finite.any():
                reason = f"its predictions of {text} are not finite, from {place} on"
                raise FormatError.about(source, reason, _NOT_FINITE)
        runtime = RunSpeed(self._tokens / seconds, mx.get_peak_memory())
        return Measured(measured, places, runtime)

    def write(
        self,
        file: str | os.PathLike[str],
        source: str | Path,
        folder: Path,
        settings: Mapping[str, Any],
    ) -> None:
        """Write the log-probabilities of a checkpoint, of the windows of this process, to a file.

        Raises:
            FormatError: If they are not finite.
        """
        blocks = list[str]()
        predicted = self._predictions(folder, blocks)
        try:
            write_reference(file, self.shapes_of_windows, predicted, settings)
        except ValueError as error:
            reason = f"its predictions are not finite{_after(blocks)}"
            raise FormatError.about(source, reason, _NOT_FINITE) from error

    @property
    def shapes_of_windows(self) -> list[tuple[int, int]]:
        """Tokens and vocabulary of what is predicted in every window of this process."""
        scored, batches = 1 + self.context, self._batches()
        return [(b.tokens.shape[1] - scored, self.vocabulary) for b in batches for _ in b.tokens]

    @property
    def _tokens(self) -> int:
        """How many tokens all processes read: all but the last of each window."""
        return sum(tokens[:, 1:].size for _, tokens in self.texts)

    @property
    def _length(self) -> int:
        return max(tokens.shape[1] for _, tokens in self.texts)

    def _peak(self, rows: int, length: int | None = None) -> int:
        """Bytes of so many windows at a time, of the most demanding checkpoint."""
        length = length or self._length
        return max(running_peak(shape, rows, length) for shape in self.shapes.values())

    def _shorter(self) -> Iterator[Smaller]:
        """Shorter windows, which take less."""
        length = self._length // 2
        while length > 1:
            yield Smaller(f"--window {length}", self._peak(1, length))
            length //= 2

    def _check_whole(self, folder: Path) -> None:
        """Refuse a model that has to be held as a whole and is too large for that."""
        peak = whole_peak(self.shapes[folder], 1, self._length)
        announce(Estimate(Work(), peak, 0), memory=self.memory)

    @cached_property
    def _most_rows(self) -> int:
        limit = memory_limit() if self.memory is None else self.memory
        most = next((rows for rows in range(ROWS, 1, -1) if self._peak(rows) <= limit), 1)
        return int(min(self.team.gathered(most)))

    def _predictions(
        self, folder: Path, lost: list[str], adapter: Path | None = None
    ) -> Iterator[LogProbabilities]:
        """Yield them; a block that makes them infinite, or NaN, is named in ``lost``."""
        return log_probabilities_by_blocks(
            folder,
            [batch.tokens[:, :-1] for batch in self._batches()],
            self.vocabulary,
            self.track,
            partial(self._check_whole, folder),
            context=self.context,
            lost=lost.append,
            adapter=adapter,
        )

    def _batches(self) -> list[_Batch]:
        """Return the batches of this process."""
        mine = stretch(len(self._all_batches), self.team.rank, self.team.size)
        return self._all_batches[mine.start : mine.stop]

    @cached_property
    def _all_batches(self) -> list[_Batch]:
        found, first = list[_Batch](), 0
        for number, (_, tokens) in enumerate(self.texts):
            rows = min(self._most_rows, rows_at_once(tokens.shape[1], self.rows))
            for start in range(0, len(tokens), rows):
                found.append(_Batch(number, first + start, tokens[start : start + rows]))
            first += len(tokens)
        return found

    def _check_enough(self) -> None:
        """Refuse more processes than there are batches to share."""
        batches = len(self._all_batches)
        if self.team.size > batches:
            raise ValueError(
                f"there must be at most as many processes as batches of windows, "
                f"{batches}, got {self.team.size}; start fewer, or take more windows"
            )


def _place(measured: TokenMeasures, blocks: Sequence[str]) -> str | None:
    """Say where predictions stop being finite; None where they never do."""
    if measured.is_finite.all():
        return None
    window = int(measured.is_finite.all(axis=1).argmin()) + 1
    return f"window {window}{_after(blocks)}"


def _after(blocks: Sequence[str]) -> str:
    """Name the first block to blame, where one was seen."""
    return f", after {blocks[0]}" if blocks else ""


def _numbers(block: str) -> list[int]:
    """Return where a block stands among the others."""
    return [int(number) for number in re.findall(r"\d+", block)]
