"""The output that a row leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Written(NamedTuple):
    """A checkpoint to measure, the bytes of its model files, its predicted KL in nats per token."""

    folder: Path
    nbytes: int
    predicted: float | None
