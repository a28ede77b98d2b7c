"""The losses of a training run, step by step: a JSONL file beside the events."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plastic_runtime.log.jsonlines import append_line, whole_lines

Kind = Literal["train", "valid"]


@dataclass(frozen=True, slots=True)
class LossRecord:
    """One loss, in nats per token where the model predicts tokens.

    Attributes:
        step: Optimizer or accumulation steps made before it was measured.
        kind: ``"train"``: mean over the steps since the record before; ``"valid"``: one evaluation.
        loss: The value; None where it was NaN or infinite.

    Examples:
        >>> LossRecord(step=10, kind="valid", loss=2.5)
        LossRecord(step=10, kind='valid', loss=2.5)
    """

    step: int
    kind: Kind
    loss: float | None


def append_loss(path: Path, step: int, kind: Kind, loss: float) -> None:
    """Append one loss to a file, as one line; see `read_losses`.

    Raises:
        OSError: If the file cannot be written.

    Examples:
        >>> append_loss(Path("losses.jsonl"), 10, "train", float("inf"))
        >>> Path("losses.jsonl").read_text()
        '{"step": 10, "kind": "train", "loss": null}\\n'
    """
    value = loss if math.isfinite(loss) else None
    append_line(path, json.dumps({"step": step, "kind": kind, "loss": value}))


def read_losses(path: str | os.PathLike[str]) -> list[LossRecord]:
    """Return the records of a file, without lines that a crash cut short.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If any other line is no record; names the file and the line.

    Examples:
        >>> append_loss(Path("losses.jsonl"), 10, "train", 2.5)
        >>> read_losses("losses.jsonl")
        [LossRecord(step=10, kind='train', loss=2.5)]
    """
    records = []
    for number, line in whole_lines(path):
        try:
            records.append(_checked(LossRecord(**json.loads(line))))
        except (TypeError, ValueError) as error:
            message = f"{os.fspath(path)}: line {number} is not a loss: {error}"
            raise ValueError(message) from None
    return records


def _checked(record: LossRecord) -> LossRecord:
    if type(record.step) is not int or record.step < 0:
        raise ValueError(f"'step' must be a whole number from 0, got {record.step!r}")
    if record.kind not in ("train", "valid"):
        raise ValueError(f'\'kind\' must be "train" or "valid", got {record.kind!r}')
    if record.loss is not None and type(record.loss) not in (int, float):
        raise ValueError(f"'loss' must be a number or null, got {record.loss!r}")
    return record
