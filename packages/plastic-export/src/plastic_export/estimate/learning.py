"""What steps of healing or training will take: told, or refused, before the work."""

from __future__ import annotations

from collections.abc import Iterator

from plastic_export.estimate.limits import Estimate, Say, Smaller, announce
from plastic_export.estimate.model_shape import ModelShape
from plastic_export.estimate.peaks import learning_peak
from plastic_export.estimate.phases import learning_work

_SHORTEST = 16


def foresee_learning(
    shape: ModelShape,
    *,
    learnt: float,
    judged: float,
    trained: bool,
    rows: int,
    length: int,
    beside: int = 0,
    disk: int,
    memory: int | None,
    say: Say | None,
) -> None:
    """Tell what learning will take.

    Args:
        shape: The model, which is held as a whole.
        learnt: Tokens that go forwards and backwards.
        judged: Tokens that go forwards alone.
        trained: Whether in mlx-lm's trainer.
        rows: Rows that one pass takes.
        length: Tokens of a row.
        beside: Tokens of a window that every pass takes beside them.
        disk: Bytes that are written.
        memory: Bytes of memory that it may take; None for what the machine has.
        say: Takes the line.

    Raises:
        ValueError: If it does not fit into memory; fewer or shorter rows are named where they do.
    """

    def smaller() -> Iterator[Smaller]:
        for fewer in range(rows - 1, 0, -1):
            yield Smaller(f"--batch {fewer}", learning_peak(shape, fewer, length, beside=beside))
        shorter = length // 2
        while shorter >= _SHORTEST:
            option = f"--batch 1 --window {shorter}"
            yield Smaller(option, learning_peak(shape, 1, shorter, beside=beside))
            shorter //= 2

    work = learning_work(shape, learnt=learnt, judged=judged, trained=trained)
    estimate = Estimate(work, learning_peak(shape, rows, length, beside=beside), disk)
    announce(estimate, memory=memory, say=say, smaller=smaller())
