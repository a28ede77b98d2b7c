"""What matrices become, several computed side by side, ahead of their turn to be written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core.linalg import in_threads, using_workers, workers
from plastic_runtime import LossGrams

from plastic_export.format.layout import Contents
from plastic_export.format.protocol import Encoded
from plastic_export.plan.offers import Candidate, Offer
from plastic_export.plan.prices import side_by_side
from plastic_export.process.in_worker import in_worker
from plastic_export.source.source import Source


class Encoder:
    """Computes what matrices become in the order in which they are written.

    Matrices are computed in runs of as many as there are idle cores, as far as their Grams fit;
    those of a stack too. The result does not depend on how many.

    Args:
        source: The source.
        contents: What every matrix becomes.
        grams: The Grams of a matrix, or of each of a stack; None where none was measured.
        names: Those that are to be computed, in order.
    """

    def __init__(
        self,
        source: Source,
        contents: Contents,
        grams: Callable[[Candidate], Iterable[LossGrams | None]],
        names: Sequence[str],
    ) -> None:
        self._source, self._contents, self._grams = source, contents, grams
        planned = [contents.matrices[name] for name in names]
        self._runs = {run[0].name: run for run in side_by_side(planned, workers())}
        self._ready = dict[str, list[Encoded]]()

    def encoded(self, name: str) -> list[Encoded]:
        """Return what a matrix becomes, or each of a stack; every name once, in order."""
        if name not in self._ready:
            run = self._runs[name]
            parts = (part for m in run for part in self._parts(m))
            self._ready = {m.name: [] for m in run}
            while several := list(islice(parts, workers())):
                results = self._computed(several)
                for part, result in zip(several, results, strict=True):
                    self._ready[part.m.name].append(result)
        return self._ready.pop(name)

    def _parts(self, m: Candidate) -> Iterator[_Part]:
        offer, weights = self._contents.chosen[m.name], self._source.layers[m.name]
        pairs = zip(self._source.matrices(weights), self._grams(m), strict=True)
        for weight, grams in pairs:
            yield _Part(weight, m, offer, grams)

    def _computed(self, parts: list[_Part]) -> list[Encoded]:
        largest = max(parts, key=lambda part: part.weight.size)
        return in_worker(
            encode,
            self._contents.format.encode,
            parts,
            workers(),
            name=largest.m.name,
            shape=largest.weight.shape,
        )


class _Part(NamedTuple):
    """A matrix, or one of a stack, and how it is stored."""

    weight: NDArray[np.float32]
    m: Candidate
    offer: Offer
    grams: LossGrams | None


def encode(
    one: Callable[..., Encoded], parts: Sequence[Iterable[object]], count: int
) -> list[Encoded]:
    """Return what ``one`` makes of every part, in so many threads. Runs in a worker."""

    def whole(part: Iterable[object]) -> Encoded:
        result = one(*part)
        result.pieces.evaluate()
        return result

    with using_workers(count):
        return in_threads(whole, parts)
