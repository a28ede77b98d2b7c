"""Sums that are handed from process to process, each of which adds its own terms.

A sum of float32 numbers depends on the order of its terms. Here it does not depend on how many
processes there are: each goes on from the very bits that the one before it ended with, as if one
process had added everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plastic_runtime.distributed.team import Team

ENTRIES = 2**20
"""Entries in one message, about: at most 8 MiB, or one row of a matrix."""


class RunningSum(NamedTuple):
    """A sum on its way.

    Attributes:
        total: A symmetric matrix, or a stack of them, of which only lower triangles count.
        terms: How many are in it.

    Examples:
        >>> RunningSum(np.zeros((2, 2)), terms=7).terms
        7
    """

    total: NDArray[Any]
    terms: int


def hand_on(team: Team, to: int, sums: dict[str, RunningSum], extra: int = 0) -> None:
    """Send sums to a process that takes them over.

    Cost:
        The bytes of the lower triangles, and one line of text for each sum. Beside the sums a
        message of `ENTRIES` is in memory.

    Args:
        team: The processes.
        to: The number of that process.
        sums: The sums by name.
        extra: A whole number that goes with them.

    Examples:
        >>> hand_on(Team(), 0, {})
        Traceback (most recent call last):
        ValueError: a process that works alone has nobody to send to or receive from.
    """
    shapes = {n: [list(s.total.shape), s.total.dtype.str, s.terms] for n, s in sums.items()}
    team.send_record(to, {"sums": shapes, "extra": extra})
    for running in sums.values():
        for part in lower_parts(running.total.shape):
            team.send_array(to, part.of(running.total))


def taken_over(team: Team, of: int) -> tuple[dict[str, RunningSum], int]:
    """Return the sums that a process hands on, and what goes with them.

    Examples:
        >>> taken_over(Team(), 0)
        Traceback (most recent call last):
        ValueError: a process that works alone has nobody to send to or receive from.
    """
    record, sums = team.received_record(of), dict[str, RunningSum]()
    for name, (shape, dtype, terms) in record["sums"].items():
        total = np.zeros(shape, dtype)
        for part in lower_parts(total.shape):
            part.put(total, team.received_array(of, part.entries, dtype))
        sums[name] = RunningSum(total, terms)
    return sums, record["extra"]


class LowerPart(NamedTuple):
    """Some rows of the lower triangle of a matrix, or of every matrix of a stack.

    Attributes:
        start: The first row.
        mask: Where their lower triangle is, shape ``(rows, size)``.
        matrices: The part of a stack; None for a single matrix.
    """

    start: int
    mask: NDArray[np.bool_]
    matrices: slice | None = None

    @property
    def entries(self) -> int:
        """How many entries it has."""
        own = int(self.mask.sum())
        return own if self.matrices is None else own * (self.matrices.stop - self.matrices.start)

    def of(self, total: NDArray[Any]) -> NDArray[Any]:
        """Return its entries, flat."""
        return np.ascontiguousarray(self._rows(total)[..., self.mask].reshape(-1))

    def put(self, total: NDArray[Any], values: NDArray[Any]) -> None:
        """Write its entries to where `of` found them."""
        rows = self._rows(total)
        rows[..., self.mask] = values.reshape(*rows.shape[:-2], -1)

    def _rows(self, total: NDArray[Any]) -> NDArray[Any]:
        stop = self.start + len(self.mask)
        if self.matrices is None:
            return total[self.start : stop]
        return total[self.matrices, self.start : stop]


def lower_parts(shape: tuple[int, ...]) -> Iterator[LowerPart]:
    """Cut the lower triangle of a matrix, or those of a stack, into parts for one message each.

    Args:
        shape: ``(size, size)``, or ``(matrices, size, size)``.

    Examples:
        >>> [part.entries for part in lower_parts((3, 3))]
        [6]
    """
    size = shape[-1]
    if len(shape) == 3:
        step = max(1, ENTRIES // max(1, size * size))
        mask = np.tri(size, dtype=bool)
        for first in range(0, shape[0], step):
            yield LowerPart(0, mask, slice(first, min(first + step, shape[0])))
        return
    step = max(1, ENTRIES // max(1, size))
    for start in range(0, size, step):
        yield LowerPart(start, np.tri(min(step, size - start), size, start, dtype=bool))
