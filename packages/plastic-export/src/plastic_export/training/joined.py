"""What processes that train together must obey before they begin."""

from __future__ import annotations

import inspect

from plastic_export.training.data.training_data import TrainingData


def check_batch(batch: int, processes: int) -> None:
    """Refuse a batch that cannot be dealt out, and an mlx-lm that would deal it out by itself.

    Args:
        batch: Rows in a batch.
        processes: How many processes there are.

    Raises:
        ValueError: If it is not divisible by their number, or mlx-lm is too old.
    """
    if processes == 1:
        return
    if batch % processes:
        below, above = batch - batch % processes, batch - batch % processes + processes
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"`batch` must be divisible by the {processes} processes, got {batch}; give {near}, "
            "or start other processes."
        )
    from mlx_lm.tuner import trainer

    if "comm_group" not in inspect.signature(trainer.iterate_batches).parameters:
        raise ValueError("this mlx-lm deals rows out by itself; install a newer one for processes.")


def check_rows(rows: TrainingData, processes: int) -> None:
    """Refuse fewer rows to validate on than there are processes.

    Raises:
        ValueError: If there are fewer.
    """
    if len(rows.valid) < processes:
        raise ValueError(
            f"`data` must have a row to validate on for each of the {processes} processes, has "
            f"{len(rows.valid)}; add rows, or start fewer processes."
        )
