"""The rows that are held out of training where no file holds rows to validate on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

SHARE = 10  # one row of so many, as mlx-lm takes of a data set of the Hub


def hold_out(rows: Sequence[T], *, most: int, seed: int) -> tuple[list[T], list[T]]:
    """Part rows into those to train on and those to validate on, both in their order.

    Args:
        rows: All of them.
        most: Rows that are held out at most.
        seed: Draws those held out: a tenth, at least one.
    """
    count = min(max(1, len(rows) // SHARE), most)
    drawn = {*np.random.default_rng(seed).permutation(len(rows))[:count].tolist()}
    train = [row for i, row in enumerate(rows) if i not in drawn]
    return train, [rows[i] for i in sorted(drawn)]
