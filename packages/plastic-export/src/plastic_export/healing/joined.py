"""The task of a healing in several processes: the first one asks, all compute their windows."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from plastic_runtime.distributed import Team

from plastic_export.healing.distillation import Split
from plastic_export.healing.loop import Arrays, HealTask, Rows


def share_of_split(split: Split, team: Team) -> Split:
    """Return the windows that a process judges by, and all that may be learned from."""
    return Split(split.training, split.held_out[team.rank :: team.size])


def check_shares(batch: int, split: Split, processes: int) -> None:
    """Refuse more processes than there are windows for.

    Raises:
        ValueError: If a batch, or the windows held out, are fewer.
    """
    for name, windows in (("`batch`", batch), ("the windows held out", len(split.held_out))):
        if windows < processes:
            raise ValueError(
                f"{name} must be at least the {processes} processes, got {windows}; "
                "take more, or start fewer processes."
            )


class JoinedTask:
    """A ``HealTask`` of a team: the first process asks, the others `answer` until it is `done`.

    All compute at the values of the first one, each on its share of the windows. Sums are in the
    order of the processes' ring: the same bits for the same number of them.

    Args:
        team: The processes.
        task: The task of this one; it judges by its share of the windows held out.
        held_out: How many windows that share has.

    Cost:
        Per step about twice the bytes of the values, and of their gradients in float32, are sent
        by each process.
    """

    def __init__(self, team: Team, task: HealTask, held_out: int) -> None:
        self._team, self._task, self._held_out = team, task, held_out

    def gradient(self, values: Mapping[str, mx.array], rows: Rows) -> Arrays:
        """Return the gradient of the mean divergence over these training windows, by name."""
        self._team.told(rows.tolist())
        return self._gradient(self._team.told_arrays(values), rows)

    def divergence(self, values: Mapping[str, mx.array]) -> float:
        """Return the mean divergence over the held-out windows."""
        self._team.told([])
        return self._divergence(self._team.told_arrays(values))

    def done(self) -> None:
        """Let the others go on, in the first process."""
        self._team.told(None)

    def answer(self) -> None:
        """Compute what the first process asks for, in all others, until it is done."""
        while (asked := self._team.told(None)) is not None:
            values = self._team.told_arrays({})
            if asked:
                self._gradient(values, np.array(asked))
            else:
                self._divergence(values)

    def _gradient(self, values: Mapping[str, mx.array], rows: Rows) -> Arrays:
        own = rows[self._team.rank :: self._team.size]
        part = len(own) / len(rows)
        gradient = self._task.gradient(values, own)
        return self._team.summed_arrays({name: part * g for name, g in gradient.items()})

    def _divergence(self, values: Mapping[str, mx.array]) -> float:
        found = self._team.gathered([self._task.divergence(values), self._held_out])
        return float(sum(mean * n for mean, n in found) / sum(n for _, n in found))
