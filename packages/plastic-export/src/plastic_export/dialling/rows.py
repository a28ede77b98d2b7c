"""Components as rows of bytes: read from a folder, split anew, never decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import ITEM_BYTES, Closing, FormatError, open_safetensors
from plastic_runtime.dialling import SLEEP

from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.format.parts import Part

Bytes = NDArray[np.uint8]


def as_rows(part: Part, place: int, data: Bytes) -> Bytes:
    """Return a tensor of a part, a row per component.

    Args:
        part: One side of some components.
        place: Which of its ``specs``.
        data: The bytes of that tensor, flat.

    Returns:
        Shape (components, bytes of one).

    Examples:
        >>> part = Part("p.u.weight", (2, 3), "BF16", transposed=True)
        >>> as_rows(part, 0, np.arange(12, dtype=np.uint8)).tolist()
        [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    """
    if not part.transposed:
        return data.reshape(part.shape[0], -1)
    count, length = part.shape
    items = data.reshape(length, count, ITEM_BYTES[part.dtype])
    return np.ascontiguousarray(items.swapaxes(0, 1)).reshape(count, -1)


def from_rows(part: Part, rows: Bytes) -> Bytes:
    """Return the bytes of a tensor, of which ``rows`` are what `as_rows` gave."""
    if not part.transposed:
        return np.ascontiguousarray(rows).reshape(-1)
    count, length = part.shape
    items = rows.reshape(count, length, ITEM_BYTES[part.dtype])
    return np.ascontiguousarray(items.swapaxes(0, 1)).reshape(-1)


class ComponentRows(Closing):
    """The files of a folder, its components as rows. A context manager.

    Args:
        folder: The folder.

    Attributes:
        model: Its model files.

    Raises:
        FormatError: If a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._sleep_file = folder / SLEEP
        with ExitStack() as stack:
            self.model: Checkpoint = stack.enter_context(open_checkpoint(folder))
            is_there = self._sleep_file.is_file()
            self._asleep = (
                stack.enter_context(open_safetensors(self._sleep_file)) if is_there else None
            )
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close every file."""
        self._stack.close()

    def of(self, awake: Part | None, asleep: Part | None) -> list[Bytes]:
        """Return one side of all components of a matrix, first those awake.

        Returns:
            One array per tensor of a part: entries, or codes, scales and biases.
        """
        parts = [part for part in (awake, asleep) if part is not None]
        return [np.concatenate(rows) for rows in zip(*map(self._tensors, parts), strict=True)]

    def _tensors(self, part: Part) -> Iterator[Bytes]:
        for place, spec in enumerate(part.specs):
            yield as_rows(part, place, self._raw(part, spec.name))

    def _raw(self, part: Part, name: str) -> Bytes:
        if part.place == "model":
            return self.model.raw(name)
        if self._asleep is None:
            raise FormatError.about(self._sleep_file, "missing", "copy it again")
        return self._asleep.read(self._asleep.header.tensors[name])
